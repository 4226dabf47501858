/** How long the latest checkpoints took, for people who watch a group. Memory is constant. */

import type { CheckpointResult, CheckpointStatistics } from './group.ts'

/** Checkpoints that are looked back at. */
const WINDOW = 1024

export class CheckpointTimes {
  readonly #pauses = new Float64Array(WINDOW)
  readonly #commits = new Float64Array(WINDOW)
  #count = 0
  #lastMs = 0

  add({ pauseUs, commitUs }: CheckpointResult, nowMs: number): void {
    const slot = this.#count % WINDOW
    this.#pauses[slot] = pauseUs
    this.#commits[slot] = commitUs
    this.#count += 1
    this.#lastMs = nowMs
  }

  /** Null before the first one since the start of the process. */
  statistics(nowMs: number): CheckpointStatistics | null {
    if (this.#count === 0) return null
    const held = Math.min(this.#count, WINDOW)
    const pauses = this.#pauses.slice(0, held).sort()
    const commits = this.#commits.slice(0, held).sort()
    return {
      ageMs: Math.round(nowMs - this.#lastMs),
      count: this.#count,
      pauseUs: { p50: quantile(pauses, 0.5), p99: quantile(pauses, 0.99) },
      commitUs: { p50: quantile(commits, 0.5), p99: quantile(commits, 0.99) },
    }
  }
}

/** The smallest value that at least this share of the sorted values does not exceed. */
function quantile(sorted: Float64Array, share: number): number {
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0
}
