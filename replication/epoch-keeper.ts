/**
 * The epochs of a secondary in both places where they are kept: the layers over the images, and the log. Carries out
 * what the machine decides about them, and gives it the outcome.
 *
 * Invariants:
 *  - 4  All disks are cut, and sealed, in one turn of the event loop: nobody sees one sealed and another not.
 *  - 3  An epoch is sealed, and reported as committed, only after the log has its commit.
 *  - 10 What is sealed after a promote is never brought back over the active guest's writes, once these were flushed.
 */

import type { Timers } from '../core/clock.ts'
import { asFault, Fault } from '../core/fault.ts'
import { isPromise, type MaybePromise } from '../core/maybe-promise.ts'
import type { DiskLayers } from '../ramdisk/disk-layers.ts'
import type { RecordSource } from '../ramdisk/record-source.ts'
import type { EpochLog, Standing } from './journal/epoch-log.ts'
import { MOST_BACKLOG } from './journal/journal.ts'
import type { Frame } from './machine/frame.ts'
import type { DiskIdentity } from './machine/handshake.ts'
import type { ReplicaState } from './machine/replica-state.ts'
import type { SecondaryInput } from './machine/secondary-io.ts'
import type { Troubles } from './troubles.ts'

/** How long an active copy waits before it tries again to write its journal. */
const RETRY_MS = 1000

export interface KeeperContext {
  readonly layers: () => readonly DiskLayers[]
  readonly troubles: Troubles
  readonly timers: Timers
  readonly nowMs: () => number
  /** Tells the machine. */
  readonly step: (input: SecondaryInput) => void
}

export class EpochKeeper {
  readonly #log: EpochLog
  /** Bytes that the log may grow to. */
  readonly #limit: number
  readonly #context: KeeperContext
  #restarting: Promise<void> | undefined
  #closing = false
  /** Commits that the log has been asked for and has not answered. */
  readonly #committing = new Set<Promise<void>>()
  /** Whether the log has data that no marker and no discard follows. */
  #appended = false
  /** By disk: whether no recovery can bring back what is older than the active guest's writes. */
  #settled: (MaybePromise<void> | 'not yet')[] = []

  constructor(log: EpochLog, limit: number, context: KeeperContext) {
    this.#log = log
    this.#limit = limit
    this.#context = context
  }

  get durable(): boolean {
    return this.#log.durable
  }

  /** Whether the log cannot be written now. */
  get isFailing(): boolean {
    return this.#log.failure !== undefined
  }

  get bytes(): number {
    return this.#log.bytes
  }

  /** Grows whenever something of what was given to the log is on disk. */
  get progress(): number {
    return this.#log.progress
  }

  /** Bytes of disk that the log may take. */
  get limit(): number {
    return this.#limit
  }

  get hasRoom(): boolean {
    return this.#log.backlog < MOST_BACKLOG && this.#log.bytes < this.#limit
  }

  /** Calls `wake` once when the log has caught up with what it was given. @returns false when it is not behind */
  awaitWritten(wake: () => void): boolean {
    if (this.#log.backlog < MOST_BACKLOG) return false
    this.#log.whenDrained(wake)
    return true
  }

  /** Where what was appended can be read again; undefined where nothing is kept. */
  get records(): RecordSource | undefined {
    return this.#log.records
  }

  /** Data of the epoch that is being received. @returns as EpochLog.append() */
  append(record: Readonly<Frame>): number | undefined {
    this.#appended = true
    return this.#log.append(record)
  }

  /** Resolves when everything that was appended is on stable storage. @throws Fault when it never will be */
  sync(): MaybePromise<void> {
    return this.#log.sync()
  }

  commit(checkpoint: number, state: ReplicaState): void {
    const { nowMs, step, troubles, layers } = this.#context
    const startedMs = nowMs()
    // A disk that is added before the commit ends is not part of it.
    const cut = [...layers()]
    for (const each of cut) each.cut()
    this.#appended = false
    const committed = (): void => {
      for (const each of cut) each.seal(checkpoint)
      troubles.over('journal')
      const commitUs = Math.round((nowMs() - startedMs) * 1000)
      step({ type: 'committed', checkpoint, commitUs })
    }
    const committing = this.#log.commit(checkpoint, state, committed)
    if (!isPromise(committing)) return
    const ended = committing.catch((error: unknown) => {
      // The log says that it has failed by itself, once for all commits.
      if (!(error instanceof Fault)) throw error
    })
    this.#committing.add(ended)
    void ended.finally(() => this.#committing.delete(ended))
  }

  /** Forgets what was received since the last marker. */
  discard(): void {
    for (const each of this.#context.layers()) each.discardPending()
    if (this.#appended) this.#log.discard()
    this.#appended = false
  }

  /** The log cannot be written: no commit that it was asked for will ever be. */
  failed(fault: Fault): void {
    this.#context.troubles.report('journal', fault.message)
    this.#context.step({ type: 'log-failed', reason: fault.message })
    // Last: memory that is given back lets frames in that were held, and the link that they came on has to be gone by then.
    for (const each of this.#context.layers()) each.discardCut()
  }

  /** Begins a log anew that has failed. Resolves when that is done, or has failed as well, of which the machine is told. */
  restart(): Promise<void> {
    this.#restarting ??= this.#restart().finally(() => {
      this.#restarting = undefined
    })
    return this.#restarting
  }

  async #restart(): Promise<void> {
    try {
      await this.#log.restart()
    } catch (error) {
      const { message } = asFault(error, 'IO', 'the journal cannot be begun again')
      this.#context.step({ type: 'log-failed', reason: message })
      return
    }
    this.#context.step({ type: 'log-restarted' })
  }

  /** @param before has to be there before the state is remembered */
  remember(state: ReplicaState, before: Promise<void> | undefined): void {
    const done = (): void => this.#context.step({ type: 'remembered' })
    const remembering =
      before === undefined ? this.#log.persist(state) : before.then(() => this.#log.persist(state))
    if (!isPromise(remembering)) return done()
    void remembering.then(done, (error: unknown) => {
      const { message } = asFault(error, 'IO', 'the promotion cannot be recorded')
      this.#context.step({ type: 'remember-failed', reason: message })
    })
  }

  /** What a primary remembers of itself. @throws Fault when that cannot be made durable */
  persist(state: ReplicaState): MaybePromise<void> {
    return this.#log.persist(state)
  }

  /** Remembers that the group has these disks. @throws Fault */
  change(disks: readonly DiskIdentity[], stand: Standing): MaybePromise<void> {
    return this.#log.change(disks, stand)
  }

  /** As EpochLog.keep(). */
  keep(): () => void {
    return this.#log.keep()
  }

  /** The disk of that number is one of the group's no longer. */
  drop(disk: number): void {
    this.#settled = this.#settled.filter((_, other) => other !== disk)
  }

  /** The disks are what their images hold, and follow a primary again. Every epoch is in the images. */
  follow(): void {
    for (const each of this.#context.layers()) each.follow()
    this.#settled = []
    this.#appended = false
  }

  activate(): void {
    for (const each of this.#context.layers()) each.activate()
    if (!this.#log.durable) return
    this.#settled = this.#context.layers().map(() => 'not yet')
    for (const disk of this.#settled.keys())
      void Promise.resolve(this.settled(disk)).catch((error: unknown) => {
        if (!(error instanceof Fault)) throw error
      })
  }

  /**
   * Resolves when an active copy's writes to a disk survive a crash once the image has them: until what is older is in
   * the image, and the log knows that, a recovery would bring it back over them.
   * @throws Fault when the server is shut down before
   */
  settled(disk: number): MaybePromise<void> {
    if (this.#settled[disk] === 'not yet') this.#settled[disk] = this.#settle(disk)
    return this.#settled[disk]
  }

  /** Every epoch up to this one is in the image of a disk. */
  flushed(disk: number, checkpoint: number): void {
    this.#log.flushed(disk, checkpoint)
  }

  /** The server is being shut down: nothing is tried for ever any more. */
  stop(): void {
    this.#closing = true
  }

  /** Resolves when no commit is under way, which a guest may wait for; undefined while there is none. */
  get urgent(): Promise<void> | undefined {
    return this.#committing.size === 0 ? undefined : this.quiet()
  }

  /** Resolves when every commit that was begun has ended. */
  async quiet(): Promise<void> {
    await Promise.allSettled(this.#committing)
  }

  /** @param drained disks whose images have everything: the next process has nothing to recover for them */
  async close(drained: readonly number[]): Promise<void> {
    this.#closing = true
    try {
      for (const disk of drained) await this.#log.retire(disk)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      this.#context.troubles.report('journal', error.message)
    }
    await this.#log.close()
  }

  async #settle(disk: number): Promise<void> {
    await this.#context.layers()[disk]?.idle()
    for (;;) {
      try {
        await this.#log.retire(disk)
        this.#settled[disk] = undefined
        this.#context.troubles.over('journal')
        return
      } catch (error) {
        const fault = asFault(error, 'IO', 'the journal cannot be written')
        if (this.#closing) throw fault
        this.#context.troubles.report('journal', fault.message)
        await new Promise<void>((resolve) => {
          this.#context.timers.after(RETRY_MS, resolve)
        })
      }
    }
  }
}
