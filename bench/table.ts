/**
 * What a benchmark yields: rows, each one kind of work done by several subjects in the same run, with the budgets
 * that are set for it. Only ratios within a row mean anything; absolute figures drift with the machine.
 */

import { median } from './samples.ts'

export type Unit = 'kIOPS' | 'GB/s' | 'µs' | 'ms' | '% of a core' | 'MiB'

export interface Row {
  readonly work: string
  readonly unit: Unit
  /** Samples by subject, one per round, in the order of the columns. */
  readonly samples: ReadonlyMap<string, readonly number[]>
  readonly budgets: readonly Budget[]
}

/** A promise about one row: a ratio or a value, and its bound. */
export interface Budget {
  readonly promise: string
  /** What was measured, ready to print. */
  readonly measured: string
  readonly met: boolean
}

export interface Section {
  readonly title: string
  readonly about: string
  readonly rows: readonly Row[]
}

export const COLOTAP = 'colotap'

/** Gathers the samples of one row. */
export class RowBuilder {
  readonly #samples = new Map<string, number[]>()

  add(subject: string, value: number): void {
    const samples = this.#samples.get(subject) ?? []
    samples.push(value)
    this.#samples.set(subject, samples)
  }

  median(subject: string): number {
    return median(this.#samples.get(subject) ?? [])
  }

  /** The newest sample, for people who watch. */
  last(subject: string): string {
    return figure(this.#samples.get(subject)?.at(-1) ?? Number.NaN)
  }

  build(work: string, unit: Unit, budgets: readonly Budget[] = []): Row {
    return { work, unit, samples: this.#samples, budgets }
  }
}

/** The budget `subject is at least `factor` times `peer``; of several peers the best counts. Undefined without a peer. */
export function atLeast(
  row: RowBuilder,
  factor: number,
  peers: readonly string[],
  name: string,
  subject = COLOTAP,
): Budget[] {
  const best = Math.max(...peers.map((peer) => row.median(peer)).filter(Number.isFinite))
  const ratio = row.median(subject) / best
  if (!Number.isFinite(ratio)) return []
  return [
    {
      promise: `≥ ${factor.toFixed(2)} × ${name}`,
      measured: `${ratio.toFixed(2)} ×`,
      met: ratio >= factor,
    },
  ]
}

/** The budget `subject is at most `bound``, in the row's own unit. */
export function atMost(row: RowBuilder, bound: number, name: string, subject = COLOTAP): Budget[] {
  const value = row.median(subject)
  if (!Number.isFinite(value) || !Number.isFinite(bound)) return []
  return [{ promise: `≤ ${name}`, measured: figure(value), met: value <= bound }]
}

/** Three significant digits. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return '–'
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.max(Math.abs(value), 0.001))))
  return value.toFixed(Math.min(digits, 3))
}
