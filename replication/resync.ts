/**
 * Sends what the secondary lacks, beside the guest's own writes, no faster than asked for.
 *
 * Invariants:
 *  - 16 Each range is read and sent under the lock that guests' writes take: nothing newer is overwritten.
 *  - Nothing is sent before it is remembered, durably, that it may differ (prepare()).
 *  - A resync that was stopped sends nothing any more, and says nothing.
 */

import { MiB } from '../core/units.ts'
import type { GroupEnvironment } from './environment.ts'
import type { ResyncProgress } from './group.ts'
import type { PrimaryInput } from './machine/primary-io.ts'
import type { PrimaryMachine } from './machine/primary.ts'
import type { PrimaryDisk } from './primary-disk.ts'

/** Bytes read from the image at a time. */
const CHUNK = 1 * MiB

export interface ResyncOptions {
  readonly session: number
  /** What is dirty with respect to this checkpoint is sent. */
  readonly committed: number
  readonly disks: readonly PrimaryDisk[]
  readonly machine: PrimaryMachine
  readonly environment: GroupEnvironment
  /** Bytes a second; 0: as fast as it goes. */
  readonly rate: number
  readonly prepare: () => Promise<void>
  readonly step: (input: PrimaryInput) => void
}

export class Resync {
  readonly #options: ResyncOptions
  #stopped = false
  #done = false
  /** Bytes that had to be sent when it began, and that were sent. */
  #total = 0
  #all = 0
  #begunMs = 0
  /** The same since the rate was set. */
  #sent = 0
  #startedMs = 0
  #rate: number

  constructor(options: ResyncOptions) {
    this.#options = options
    this.#rate = options.rate
  }

  /** Bytes a second from now on; 0: as many as it can. */
  setRate(rate: number): void {
    this.#rate = rate
    this.#startedMs = this.#options.environment.nowMs()
    this.#sent = 0
  }

  stop(): void {
    this.#stopped = true
  }

  /** Null before the first and after the last byte. */
  get progress(): ResyncProgress | null {
    if (this.#stopped || this.#total === 0 || this.#done) return null
    const seconds = (this.#options.environment.nowMs() - this.#begunMs) / 1000
    const bytesPerSecond = seconds > 0 ? Math.round(this.#all / seconds) : 0
    // The guest may write meanwhile what was not dirty before: never more than all.
    const sentBytes = Math.min(this.#all, this.#total)
    const secondsLeft =
      bytesPerSecond === 0 ? null : Math.ceil((this.#total - sentBytes) / bytesPerSecond)
    return { sentBytes, totalBytes: this.#total, bytesPerSecond, secondsLeft }
  }

  /** @throws Fault when the image cannot be read or the map not be written */
  async run(): Promise<void> {
    const { disks, environment, prepare, session, step } = this.#options
    await prepare()
    this.#startedMs = environment.nowMs()
    this.#begunMs = this.#startedMs
    for (const index of disks.keys()) this.#total += this.#options.machine.dirtyBytes(index)
    const buffer = Buffer.from(new SharedArrayBuffer(CHUNK))
    for (const [index, disk] of disks.entries()) await this.#send(index, disk, buffer)
    this.#done = true
    if (!this.#stopped) step({ type: 'resynced', session, nowMs: environment.nowMs() })
  }

  async #send(index: number, disk: PrimaryDisk, buffer: Buffer): Promise<void> {
    const { machine, committed, step } = this.#options
    let run = machine.nextDirty(index, 0, CHUNK, committed)
    while (run !== undefined && !this.#stopped) {
      await disk.resend(run.at, buffer.subarray(0, run.length))
      if (this.#isStopped()) return
      if (machine.resent(index, run.at, run.length)) step({ type: 'part-sent' })
      this.#sent += run.length
      this.#all += run.length
      await this.#pace()
      run = machine.nextDirty(index, run.at + run.length, CHUNK, committed)
    }
  }

  /** Waits until the rate allows more. */
  async #pace(): Promise<void> {
    const { environment } = this.#options
    if (this.#rate === 0) return
    const dueMs = this.#startedMs + (this.#sent / this.#rate) * 1000
    const waitMs = dueMs - environment.nowMs()
    if (waitMs < 1) return
    await new Promise<void>((resolve) => {
      environment.timers.after(waitMs, resolve)
    })
  }

  #isStopped(): boolean {
    return this.#stopped
  }
}
