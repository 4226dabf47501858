/**
 * Keeps the maps of changed regions of a primary small, for as long as it leads.
 *
 * Invariant: a trouble with an image's flush or with a map ends with the first pass in which both were seen to work.
 */

import type { Timers } from '../../core/clock.ts'
import { asFault } from '../../core/fault.ts'
import { every } from '../environment.ts'
import type { PrimaryMachine } from '../machine/primary.ts'
import type { Troubles } from '../troubles.ts'
import { retainChanges, type RetainedDisk } from './retain-changes.ts'

/** How often regions that need not be marked any more are looked for. */
const RETAIN_MS = 30_000

export interface RetentionOptions {
  readonly machine: Pick<PrimaryMachine, 'nextDirty' | 'committed'>
  /** In the machine's order; may grow. */
  readonly disks: readonly RetainedDisk[]
  readonly troubles: Pick<Troubles, 'report' | 'concerns' | 'over'>
}

export class Retention {
  readonly #options: RetentionOptions
  /** Passes come one after the other. */
  #passes: Promise<void> = Promise.resolve()

  constructor(options: RetentionOptions) {
    this.#options = options
  }

  /** Makes a pass every half minute. @returns ends that */
  begin(timers: Timers): () => void {
    return every(timers, RETAIN_MS, () => {
      this.#passes = this.#passes.then(() => this.pass())
    })
  }

  /** Resolves when no pass is under way. */
  quiet(): Promise<void> {
    return this.#passes
  }

  /** Marks as changed just what is, when nothing is written any more. @throws Fault */
  async settle(): Promise<void> {
    // Twice: the first pass spares what was written lately.
    for (let pass = 0; pass < 2; pass += 1) await this.#retain()
  }

  /** Never rejects: what does not work is a trouble, and tried again. */
  async pass(): Promise<void> {
    const { troubles } = this.#options
    try {
      await this.#retain()
      if (!troubles.concerns('regions')) return
      // A pass that finds nothing to clear asks nothing of the disks.
      await this.#prove()
      troubles.over('regions')
    } catch (error) {
      const { message } = asFault(error, 'IO', 'cannot flush the image')
      troubles.report(
        'regions',
        `which regions have changed cannot be brought up to date: ${message}; tried again each half minute, and until it works a crash of this side makes the next resync longer`,
      )
    }
  }

  #retain(): Promise<void> {
    const { machine, disks } = this.#options
    return retainChanges(machine, disks)
  }

  async #prove(): Promise<void> {
    for (const { below, regions, gone } of this.#options.disks) {
      if (gone === true) continue
      await below.flush()
      await regions.saved()
    }
  }
}
