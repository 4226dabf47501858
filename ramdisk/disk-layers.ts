/**
 * One disk of a secondary: the image and the layers of memory over it (docs/replication.md, "The model").
 *
 *     pending   the primary's writes since the last marker; nobody reads them
 *     cut       epochs between their marker and their commit, oldest first; nobody reads them either
 *     local     the secondary guest's own writes since the last checkpoint (COLO)
 *     sealed    committed epochs, oldest first, on their way into the image
 *     image     the device below
 *
 * Invariants:
 *  - A read sees local over sealed (newest first) over image, each sector for itself, and never pending or cut.
 *  - readReceived() sees pending over cut over sealed over image, as they are at the instant of the call, and never local.
 *  - Until activate() only the flusher writes to the image.
 *  - cut(), seal(), activate(), discardPending() and discardCut() take effect at once, for every request that comes after: no request is
 *    ever refused or held up because of them, and none takes time in proportion to the data held.
 *  - After activate() a write is in the image, and out of every layer, when it completes. It holds the range lock
 *    from before the image is written until the layers have forgotten the range, and the flusher holds the same lock
 *    while it takes a range from a layer and writes it: so no older epoch overwrites a newer write.
 *  - All offsets and lengths are multiples of a sector, except that a range may end at the end of an odd-sized disk.
 */

import { assert } from '../core/assert.ts'
import { NO_HOLE, type BlockDevice, type RequestFlags } from '../core/block-device.ts'
import type { Timers } from '../core/clock.ts'
import { Fault } from '../core/fault.ts'
import { ensure, isPromise, then, type MaybePromise } from '../core/maybe-promise.ts'
import { RangeLock } from '../core/range-lock.ts'
import { Epoch } from './epoch.ts'
import { Flusher } from './flusher.ts'
import { readGaps, readThrough, takeHeld } from './overlay.ts'
import type { PageMemory } from './page-memory.ts'

export interface DiskLayersOptions {
  /** Serves every range that is aligned to a sector. Not closed by close(). */
  readonly image: BlockDevice
  /** May be shared by the disks of a group, or of a process. */
  readonly memory: PageMemory
  readonly timers: Timers
  /** The epoch sealed under this number, and all before it, are in the image and durable. In order, once each. */
  readonly onFlushed: (checkpoint: number) => void
  /** The image refused a write or flush of an epoch. Nothing is lost: it is tried again until it works. */
  readonly onError: (fault: Fault) => void
  /** Writes of epochs to the image in flight at a time. */
  readonly inFlight?: number
}

/** What the guest reads from, in terms of who may be writing to the image. */
type Role = 'following' | 'active' | 'closed'

export class DiskLayers {
  readonly #image: BlockDevice
  readonly #memory: PageMemory
  readonly #size: number
  readonly #lock = new RangeLock()
  readonly #flusher: Flusher
  readonly #onFlushed: (checkpoint: number) => void
  #role: Role = 'following'
  #pending: Epoch
  #cut: Epoch[] = []
  #local: Epoch
  /** Sealed epochs, oldest first. */
  #sealed: Epoch[] = []
  /** What a read looks through, oldest first: sealed, then local. Replaced, never changed. */
  #readable: readonly Epoch[] = []
  /** A flush of the image that failed behind the active guest's back: its next flush has to hear of it. */
  #unreported: Fault | undefined

  constructor(options: DiskLayersOptions) {
    this.#image = options.image
    this.#memory = options.memory
    this.#size = options.image.geometry.size
    this.#onFlushed = options.onFlushed
    this.#flusher = new Flusher(options.image, this.#lock, {
      memory: options.memory,
      timers: options.timers,
      maxWrite: options.image.geometry.block.max,
      inFlight: options.inFlight ?? 2,
      onError: options.onError,
      onFlushFailed: (fault) => {
        if (this.#role === 'active') this.#unreported = fault
      },
    })
    this.#pending = this.#newEpoch()
    this.#local = this.#newEpoch()
    this.#showLayers()
  }

  /** Bytes of data held in all layers, whole sectors; runs of zeroes hold none. */
  get bytesHeld(): number {
    const cut = this.#cut.reduce((sum, { bytes }) => sum + bytes, 0)
    return this.#pending.bytes + cut + this.#local.bytes + this.unflushedBytes
  }

  /** Whether an epoch waits for the image, or for its commit: it gives its memory back some day. */
  get isBusy(): boolean {
    return this.#sealed.length + this.#cut.length > 0
  }

  /** Grows whenever the image has taken something. */
  get progress(): number {
    return this.#flusher.progress
  }

  /** Bytes of data that the guest here wrote since the last checkpoint. */
  get localBytes(): number {
    return this.#local.bytes
  }

  /** Bytes of data in the epoch that is being received. */
  get pendingBytes(): number {
    return this.#pending.bytes
  }

  /** Bytes of data of sealed epochs that are not known to be durable in the image. */
  get unflushedBytes(): number {
    let sum = 0
    for (const epoch of this.#sealed) sum += epoch.bytes
    return sum
  }

  /** A write of the primary. @throws Fault NO_MEMORY leaving all as it was; ask memory.canHold() before. */
  receiveWrite(from: Buffer, at: number): void {
    this.#expect('following')
    this.#pending.write(from, at)
  }

  /** Zeroes of the primary; `punch`: the space may be given up. @throws Fault NO_MEMORY as receiveWrite. */
  receiveZero(at: number, length: number, punch: boolean): void {
    this.#expect('following')
    this.#pending.zero(at, length, punch)
  }

  /**
   * What was received goes to the image before its epoch is whole: for a recovery, whose epochs are committed, in which
   * nobody is served, and which begins anew when it is broken off.
   */
  flushReceived(): void {
    this.#expect('following')
    const part = this.#pending
    this.#pending = this.#newEpoch()
    this.#commit(part, undefined)
  }

  /** A marker: the received epoch is whole, and waits for its commit. */
  cut(): void {
    this.#expect('following')
    this.#cut.push(this.#pending)
    this.#pending = this.#newEpoch()
  }

  /** The oldest cut epoch is committed: the guest's own writes here are forgotten and the epoch becomes the disk. */
  seal(checkpoint: number): void {
    this.#expect('following')
    const epoch = this.#cut.shift()
    assert(epoch !== undefined, 'an epoch is cut before it is sealed')
    const local = this.#local
    this.#local = this.#newEpoch()
    this.#commit(epoch, checkpoint)
    // Last: whoever waits for memory is called from here, and has to find the new layers.
    local.release()
  }

  /** Forgets what was received since the last marker. */
  discardPending(): void {
    this.#expect('following')
    const pending = this.#pending
    this.#pending = this.#newEpoch()
    pending.release()
  }

  /** Forgets the epochs whose commits will never be. */
  discardCut(): void {
    const cut = this.#cut
    this.#cut = []
    for (const epoch of cut) epoch.release()
  }

  /**
   * Failover: the last checkpoint with the secondary guest's own writes is the disk from now on, and writes go
   * through to the image. Does nothing when already active.
   */
  activate(): void {
    if (this.#role === 'active') return
    this.#expect('following')
    this.#role = 'active'
    assert(this.#cut.length === 0, 'a promote comes after every commit that was begun')
    const [local, pending] = [this.#local, this.#pending]
    this.#local = this.#newEpoch()
    this.#pending = this.#newEpoch()
    this.#commit(local, undefined)
    pending.release()
  }

  /** The active disk becomes a secondary's again, once every layer is in the image and no request is under way. */
  follow(): void {
    this.#expect('active')
    assert(this.#sealed.length === 0, 'an active disk is drained before it follows')
    this.#role = 'following'
    this.#unreported = undefined
    this.#showLayers()
  }

  /** What the guest here wrote since the last checkpoint, in runs. */
  *localRanges(): Generator<{ readonly at: number; readonly length: number }> {
    let run = this.#local.next(0, this.#size)
    for (; run !== undefined; run = this.#local.next(run.at + run.length, this.#size)) yield run
  }

  /** Fills `into` from what the secondary's guest, or after activate() any guest, sees at `at`. */
  read(into: Buffer, at: number): MaybePromise<void> {
    this.#expectOpen()
    return readThrough(this.#image, this.#readable, into, at)
  }

  /**
   * Fills `into` from what the disk would hold at `at` if all that was received were committed at this instant, whatever is
   * received, committed and flushed before it resolves.
   */
  readReceived(into: Buffer, at: number): MaybePromise<void> {
    this.#expect('following')
    const gaps = takeHeld([...this.#sealed, ...this.#cut, this.#pending], into, at)
    const [first, last] = [gaps[0], gaps.at(-1)]
    if (first === undefined || last === undefined) return
    // What the flusher writes now is in none of the gaps. What is newer than this instant comes after this read: the lock is fair.
    const locked = this.#lock.acquire(first.at, last.end - first.at)
    return then(locked, (ticket) =>
      ensure(
        () => readGaps(this.#image, gaps, into, at),
        () => this.#lock.release(ticket),
      ),
    )
  }

  /** Makes durable what the image holds; resolves then. */
  flushImage(): MaybePromise<void> {
    return this.#image.flush()
  }

  /** A write of the guest here. Before activate() it lives in memory only. @throws Fault NO_MEMORY then. */
  localWrite(from: Buffer, at: number, flags: RequestFlags = 0): MaybePromise<void> {
    this.#expectOpen()
    if (this.#role === 'following') return this.#local.write(from, at)
    return this.#through(at, from.length, () => this.#image.write(from, at, flags))
  }

  /** Zeroes of the guest here; they keep their space when `flags` has NO_HOLE. */
  localZero(at: number, length: number, flags: RequestFlags = 0): MaybePromise<void> {
    this.#expectOpen()
    if (this.#role === 'following') return this.#local.zero(at, length, (flags & NO_HOLE) === 0)
    return this.#through(at, length, () => this.#image.zero(at, length, flags))
  }

  /** A trim of the guest here; before activate() the range reads as zeroes then. */
  localTrim(at: number, length: number, flags: RequestFlags = 0): MaybePromise<void> {
    this.#expectOpen()
    if (this.#role === 'following') return this.#local.zero(at, length, true)
    return this.#through(at, length, () => this.#image.trim(at, length, flags))
  }

  /**
   * A flush of the guest here. Its writes are to be forgotten at the next checkpoint until activate(), so there is
   * nothing to make durable; after that it resolves when every layer and every completed write is durable in the image.
   * @throws Fault when the image cannot make them durable, SHUTDOWN when close() comes first
   */
  flush(): MaybePromise<void> {
    this.#expectOpen()
    if (this.#role === 'following') return
    if (this.#sealed.length === 0) return this.#flushActive()
    return this.#flusher.idle().then(() => this.#flushActive())
  }

  /** Resolves when no epoch waits for the image. @throws Fault SHUTDOWN when close() comes first */
  idle(): Promise<void> {
    return this.#flusher.idle()
  }

  /** Stops flushing, waits for what is in flight, and gives all memory back; what is not in the image is forgotten. */
  async close(): Promise<void> {
    if (this.#role === 'closed') return this.#flusher.close()
    this.#role = 'closed'
    await this.#flusher.close()
    // The lock over everything comes when the writes that still go through have finished.
    this.#lock.release(await this.#lock.acquire(0, this.#size))
    for (const epoch of [this.#pending, this.#local, ...this.#cut, ...this.#sealed]) epoch.release()
    this.#sealed = []
    this.#readable = []
  }

  /** Makes `epoch` the newest sealed one. */
  #commit(epoch: Epoch, checkpoint: number | undefined): void {
    this.#sealed.push(epoch)
    this.#showLayers()
    this.#flusher.add(epoch, () => {
      const oldest = this.#sealed.shift()
      assert(oldest === epoch, 'epochs reach the image in the order of their checkpoints')
      this.#showLayers()
      epoch.release()
      if (checkpoint !== undefined) this.#onFlushed(checkpoint)
    })
  }

  #flushActive(): MaybePromise<void> {
    const fault = this.#unreported
    this.#unreported = undefined
    if (fault !== undefined) throw fault
    return this.#image.flush()
  }

  /** Performs `change` on the image, in turn with the flusher, and has the layers forget the range. */
  #through(at: number, length: number, change: () => MaybePromise<void>): MaybePromise<void> {
    // Once the layers are gone they never come back: there is nobody to take turns with.
    if (this.#sealed.length === 0) return change()
    const locked = this.#lock.acquire(at, length)
    return then(locked, (ticket) =>
      ensure(
        () => then(this.#tried(change), () => this.#forget(at, length)),
        () => this.#lock.release(ticket),
      ),
    )
  }

  /** Where a change fails the layers keep what they hold, and the image may have lost it although it was flushed there. */
  #tried(change: () => MaybePromise<void>): MaybePromise<void> {
    const failed = (error: unknown): never => {
      this.#flusher.rewrite()
      throw error
    }
    try {
      const result = change()
      return isPromise(result) ? result.catch(failed) : result
    } catch (error) {
      return failed(error)
    }
  }

  #forget(at: number, length: number): void {
    for (const epoch of this.#sealed) epoch.clear(at, length)
  }

  #showLayers(): void {
    this.#readable = this.#role === 'following' ? [...this.#sealed, this.#local] : [...this.#sealed]
  }

  #newEpoch(): Epoch {
    return new Epoch(this.#memory, this.#size)
  }

  /** Replication messages come only while they make sense: the shell sees to that. */
  #expect(role: Role): void {
    assert(this.#role === role, `a disk that is ${this.#role} takes no replicated writes`)
  }

  #expectOpen(): void {
    if (this.#role === 'closed') throw new Fault('SHUTDOWN', 'this disk is closed')
  }
}
