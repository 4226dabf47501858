/**
 * Sends what the secondary lacks, beside the guest's own writes, no faster than asked for. Where it is to compare, it asks first,
 * and sends what differs.
 *
 * Invariants:
 *  - 16 Each range is read and sent under the lock that guests' writes take: nothing newer is overwritten.
 *  - Nothing is sent before it is remembered, durably, that it may differ (prepare()).
 *  - A resync that was stopped sends nothing any more, and says nothing.
 */

import type { MaybePromise } from '../core/maybe-promise.ts'
import { MiB } from '../core/units.ts'
import { MOST_ASKED, type Comparison } from './comparison/comparison.ts'
import type { GroupEnvironment } from './environment.ts'
import type { ResyncProgress } from './group.ts'
import type { PrimaryInput } from './machine/primary-io.ts'
import type { PrimaryMachine } from './machine/primary.ts'
import { Pace } from './pace.ts'
import type { PrimaryDisk } from './primary-disk.ts'
import { progressOf } from './progress.ts'

/** Bytes read from the image at a time. */
const CHUNK = 1 * MiB

export interface ResyncOptions {
  readonly session: number
  readonly disks: readonly PrimaryDisk[]
  readonly machine: PrimaryMachine
  readonly environment: GroupEnvironment
  /** Given where what both sides have already is not to be sent. */
  readonly comparison: Comparison | undefined
  /** The most bytes in one question. */
  readonly compareBytes: number
  /** Bytes a second; 0: as fast as it goes. */
  readonly rate: number
  /** The indexes of those that are sent. */
  readonly wanted: readonly number[]
  /** Resolves when the present epoch may hold more; at once where it may. */
  readonly room: () => MaybePromise<void>
  readonly prepare: () => Promise<void>
  readonly step: (input: PrimaryInput) => void
}

/** A range that has to be sent. */
interface Task {
  readonly disk: PrimaryDisk
  readonly index: number
  readonly at: number
  readonly length: number
}

export class Resync {
  readonly #options: ResyncOptions
  readonly #pace: Pace
  #stopped = false
  #done = false
  /** Bytes that had to be sent when it began; of them, that were seen to. */
  #total = 0
  #all = 0
  #checked = 0
  /** Bytes of data that went over the link. */
  #moved = 0
  #begunMs = 0

  constructor(options: ResyncOptions) {
    this.#options = options
    this.#pace = new Pace(options.environment, options.rate)
  }

  /** Bytes a second from now on; 0: as many as it can. */
  setRate(rate: number): void {
    this.#pace.setRate(rate)
  }

  stop(): void {
    this.#stopped = true
  }

  /** Bytes of data that went over the link. */
  get movedBytes(): number {
    return this.#moved
  }

  /** Null before the first and after the last byte. */
  get progress(): ResyncProgress | null {
    if (this.#stopped || this.#total === 0 || this.#done) return null
    const elapsedMs = this.#options.environment.nowMs() - this.#begunMs
    const { doneBytes, ...rest } = progressOf(this.#all, this.#total, elapsedMs)
    return { sentBytes: doneBytes, ...rest, checkedBytes: this.#checked, movedBytes: this.#moved }
  }

  /** @throws Fault when the image cannot be read or the map not be written */
  async run(): Promise<void> {
    const { environment, comparison, compareBytes, machine, wanted } = this.#options
    await this.#options.prepare()
    this.#begunMs = environment.nowMs()
    this.#pace.setRate(this.#pace.rate)
    for (const index of wanted) this.#total += machine.unsentBytes(index)
    const chunk = comparison === undefined ? CHUNK : compareBytes
    const tasks = this.#tasks(chunk)
    const workers = comparison === undefined ? 1 : MOST_ASKED
    await Promise.all(Array.from({ length: workers }, () => this.#work(tasks, chunk)))
    this.#done = true
    const { session, step } = this.#options
    if (!this.#stopped) step({ type: 'resynced', session, nowMs: environment.nowMs() })
  }

  *#tasks(chunk: number): Generator<Task> {
    const { disks, machine, wanted } = this.#options
    for (const index of wanted) {
      const disk = disks[index]
      if (disk === undefined) continue
      let run = machine.nextUnsent(index, 0, chunk)
      // It may leave the stream meanwhile.
      while (run !== undefined && machine.carries(index)) {
        yield { disk, index, ...run }
        run = machine.nextUnsent(index, run.at + run.length, chunk)
      }
    }
  }

  async #work(tasks: Generator<Task>, chunk: number): Promise<void> {
    const memory = Buffer.from(new SharedArrayBuffer(chunk))
    for (const task of tasks) {
      await this.#options.room()
      if (this.#isStopped()) return
      const buffer = memory.subarray(0, task.length)
      const { comparison } = this.#options
      if (comparison === undefined) await this.#send(task, buffer)
      else await this.#sendDifferent(comparison, task, buffer)
      if (this.#isStopped()) return
      this.#all += task.length
      await this.#pace.spend(task.length)
    }
  }

  async #send({ disk, index, at, length }: Task, buffer: Buffer): Promise<void> {
    const { machine, step } = this.#options
    const moved = await disk.resend(at, buffer, () => !this.#stopped)
    if (this.#stopped) return
    this.#moved += moved
    if (machine.resent(index, at, length)) step({ type: 'part-sent' })
  }

  async #sendDifferent(comparison: Comparison, task: Task, buffer: Buffer): Promise<void> {
    const compared = await comparison.compare(task.disk, task.at, buffer)
    if (compared === undefined || this.#stopped) return
    this.#checked += task.length
    for (const { at, length } of compared.equal)
      this.#options.machine.foundEqual(task.index, at, length)
    for (const { at, length } of compared.different) {
      await this.#send({ ...task, at, length }, buffer.subarray(0, length))
      if (this.#isStopped()) return
    }
  }

  #isStopped(): boolean {
    return this.#stopped
  }
}
