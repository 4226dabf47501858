/**
 * Compares all of a group's disks with what the secondary holds, beside the guest's writes, no faster than asked for.
 *
 * Invariants:
 *  - What is reported to differ did differ at one instant of the stream: a write under way is never taken for a difference.
 *  - 15 What differs is marked as changed, in memory when it is found, and on disk before the verify ends.
 *  - A verify ends once: having seen everything, or unfinished, with the reason.
 */

import { AssertionFailure } from '../../core/assert.ts'
import { asFault } from '../../core/fault.ts'
import type { GroupEnvironment } from '../environment.ts'
import type { VerifyReport } from '../group.ts'
import type { PrimaryMachine } from '../machine/primary.ts'
import { Pace } from '../pace.ts'
import type { PrimaryDisk } from '../primary-disk.ts'
import { progressOf } from '../progress.ts'
import type { RegionMap } from '../regions/region-map.ts'
import { MOST_ASKED, type Comparison } from './comparison.ts'
import { Differences } from './differences.ts'

export interface VerifyOptions {
  readonly disks: readonly PrimaryDisk[]
  readonly regions: readonly RegionMap[]
  readonly machine: Pick<PrimaryMachine, 'counts' | 'foundEqual' | 'foundDifferent'>
  readonly comparison: Comparison
  readonly environment: GroupEnvironment
  /** The most bytes in one question. */
  readonly compareBytes: number
  /** Bytes a second; 0: as fast as it goes. */
  readonly rate: number
  /** A first difference was found. */
  readonly alarm: (report: VerifyReport) => void
  readonly ended: (report: VerifyReport) => void
}

interface Task {
  readonly disk: PrimaryDisk
  readonly index: number
  readonly at: number
  readonly length: number
}

export class Verify {
  /** What differs is to be sent again when everything was seen. */
  repair: boolean
  readonly #options: VerifyOptions
  readonly #pace: Pace
  readonly #differences = new Differences()
  readonly #total: number
  readonly #begunMs: number
  #checked = 0
  #state: VerifyReport['state'] = 'running'
  #reason: string | null = null
  #endedMs = 0

  constructor(options: VerifyOptions, repair: boolean) {
    this.#options = options
    this.repair = repair
    this.#pace = new Pace(options.environment, options.rate)
    this.#total = options.disks
      .filter((_, index) => options.machine.counts(index))
      .reduce((sum, { geometry }) => sum + geometry.size, 0)
    this.#begunMs = options.environment.nowMs()
  }

  get running(): boolean {
    return this.#state === 'running'
  }

  get report(): VerifyReport {
    const { disks, environment } = this.#options
    const untilMs = this.running ? environment.nowMs() : this.#endedMs
    const { doneBytes, ...rest } = progressOf(this.#checked, this.#total, untilMs - this.#begunMs)
    return {
      state: this.#state,
      reason: this.#reason,
      repair: this.repair,
      checkedBytes: doneBytes,
      ...rest,
      differentBytes: this.#differences.bytes,
      ranges: this.#differences.ranges(disks.map(({ name }) => name)),
      omittedRanges: this.#differences.omitted,
    }
  }

  setRate(rate: number): void {
    this.#pace.setRate(rate)
  }

  /** It cannot or need not go on. Does nothing when it has ended. */
  stop(reason: string): void {
    this.#end('unfinished', reason)
  }

  async run(): Promise<void> {
    const { compareBytes } = this.#options
    const tasks = this.#tasks(compareBytes)
    try {
      await Promise.all(Array.from({ length: MOST_ASKED }, () => this.#work(tasks, compareBytes)))
      this.#end(this.#differences.bytes === 0 ? 'equal' : 'different', null)
    } catch (error) {
      if (error instanceof AssertionFailure) throw error
      this.stop(asFault(error, 'IO', 'this side cannot be read').message)
    }
  }

  *#tasks(compareBytes: number): Generator<Task> {
    const { disks, machine } = this.#options
    for (const [index, disk] of disks.entries()) {
      const { size } = disk.geometry
      // What is in no checkpoint, or has left the group, is nothing to compare.
      for (let at = 0; at < size && machine.counts(index); at += compareBytes)
        yield { disk, index, at, length: Math.min(compareBytes, size - at) }
    }
  }

  async #work(tasks: Generator<Task>, compareBytes: number): Promise<void> {
    const memory = Buffer.from(new SharedArrayBuffer(compareBytes))
    for (const task of tasks) {
      if (!this.running) return
      await this.#compare(task, memory.subarray(0, task.length))
      await this.#pace.spend(task.length)
    }
  }

  async #compare({ disk, index, at, length }: Task, buffer: Buffer): Promise<void> {
    const { comparison, machine, regions } = this.#options
    const compared = await comparison.compare(disk, at, buffer)
    if (compared === undefined || !this.running) return
    // An error, and no difference: what is there, nobody knows.
    if (compared.unreadable) {
      this.stop(`the secondary cannot read ${length} bytes at ${at} of disk "${disk.name}"`)
      return
    }
    this.#checked += length
    for (const run of compared.equal) machine.foundEqual(index, run.at, run.length)
    for (const run of compared.different) {
      // In memory first: then no region is cleared any more that is marked next.
      machine.foundDifferent(index, run.at, run.length)
      const first = this.#differences.bytes === 0
      this.#differences.add(index, run.at, run.length)
      if (first) this.#options.alarm(this.report)
    }
    for (const run of compared.different) await regions[index]?.mark(run.at, run.length)
  }

  #end(state: VerifyReport['state'], reason: string | null): void {
    if (!this.running) return
    this.#endedMs = this.#options.environment.nowMs()
    this.#state = state
    this.#reason = reason
    this.#options.ended(this.report)
  }
}
