/**
 * One disk of a secondary: the image and the layers of memory over it (docs/replication.md, "The model").
 *
 *     pending   the primary's writes since the last marker; nobody reads them. Its first part is in memory, what comes when that
 *               is full is spilled: it lies in the journal, and only its places are here
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
import { readRest, readThrough, takeHeld, type Layer } from './overlay.ts'
import type { PageMemory } from './page-memory.ts'
import { bytesOf, ReceivedEpochs, spilledBytesOf, type Parts } from './received-epochs.ts'
import type { RecordSource } from './record-source.ts'

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
  /** As of the flusher. */
  readonly urgent?: () => Promise<void> | undefined
  /** Writes of epochs to the image in flight at a time. */
  readonly inFlight?: number
}

/** What the guest reads from, in terms of who may be writing to the image. */
type Role = 'following' | 'active' | 'closed'

export class DiskLayers {
  readonly #image: BlockDevice
  readonly #memory: PageMemory
  #size: number
  readonly #lock = new RangeLock()
  readonly #flusher: Flusher
  readonly #onFlushed: (checkpoint: number) => void
  #role: Role = 'following'
  readonly #received: ReceivedEpochs
  #local: Epoch
  /** The parts of sealed epochs, oldest first. */
  #sealed: Layer[] = []
  /** What a read looks through, oldest first: sealed, then local. Replaced, never changed. */
  #readable: readonly Layer[] = []
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
      ...(options.urgent === undefined ? {} : { urgent: options.urgent }),
      onError: options.onError,
      onFlushFailed: (fault) => {
        if (this.#role === 'active') this.#unreported = fault
      },
    })
    this.#received = new ReceivedEpochs(options.memory, this.#size)
    this.#local = this.#newEpoch()
    this.#showLayers()
  }

  /** Runs `work` while no epoch is written to the image. */
  async alone(work: () => Promise<void>): Promise<void> {
    const ticket = await this.#lock.acquire(0, this.#size)
    try {
      await work()
    } finally {
      this.#lock.release(ticket)
    }
  }

  /** The image has become larger, and holds zeroes there. */
  grow(size: number): void {
    this.#received.grow(size)
    for (const epoch of [this.#local, ...this.#sealed]) epoch.grow(size)
    this.#size = size
  }

  /** Bytes of the disk: the image may be ahead while it grows. */
  get size(): number {
    return this.#size
  }

  /** Bytes of data held in all layers, whole sectors; runs of zeroes hold none. */
  get bytesHeld(): number {
    return bytesOf(this.#received.layers) + this.#local.bytes + this.unflushedBytes
  }

  /** The part of them that is not in memory. */
  get spilledBytes(): number {
    return spilledBytesOf(this.#sealed) + spilledBytesOf(this.#received.layers)
  }

  /** Whether the rest of the epoch that is being received has to be spilled: what is newer must lie over what is older. */
  get isSpilling(): boolean {
    return this.#received.isSpilling
  }

  /** Whether an epoch waits for the image, or for its commit: it gives its memory back some day. */
  get isBusy(): boolean {
    return this.#sealed.length > 0 || this.#received.hasCut
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
    return this.#received.pendingBytes
  }

  /** Bytes of data of sealed epochs that are not known to be durable in the image. */
  get unflushedBytes(): number {
    return bytesOf(this.#sealed)
  }

  /** A write of the primary. @throws Fault NO_MEMORY leaving all as it was; ask memory.canHold() before. */
  receiveWrite(from: Buffer, at: number): void {
    this.#expect('following')
    this.#received.write(from, at)
  }

  /** Zeroes of the primary; `punch`: the space may be given up. @throws Fault NO_MEMORY as receiveWrite. */
  receiveZero(at: number, length: number, punch: boolean): void {
    this.#expect('following')
    this.#received.zero(at, length, punch)
  }

  /** A write of the primary that is in the record at `place`, and not in memory. @throws as receiveWrite; ask memory.canIndex() before */
  spillWrite(at: number, length: number, place: number, source: RecordSource): void {
    this.#expect('following')
    this.#received.spillWrite(at, length, place, source)
  }

  /** Zeroes of the primary in an epoch that is being spilled. @throws as spillWrite */
  spillZero(at: number, length: number, punch: boolean, source: RecordSource): void {
    this.#expect('following')
    this.#received.spillZero(at, length, punch, source)
  }

  /**
   * What was received goes to the image before its epoch is whole: for a recovery, whose epochs are committed, in which
   * nobody is served, and which begins anew when it is broken off.
   */
  flushReceived(): void {
    this.#expect('following')
    this.#commitAll(this.#received.takePending(), undefined)
  }

  /** A marker: the received epoch is whole, and waits for its commit. */
  cut(): void {
    this.#expect('following')
    this.#received.cut()
  }

  /** The oldest cut epoch is committed: the guest's own writes here are forgotten and the epoch becomes the disk. */
  seal(checkpoint: number): void {
    this.#expect('following')
    const parts = this.#received.takeCut()
    const local = this.#local
    this.#local = this.#newEpoch()
    this.#commitAll(parts, checkpoint)
    // Last: whoever waits for memory is called from here, and has to find the new layers.
    local.release()
  }

  /** Forgets what was received since the last marker. */
  discardPending(): void {
    this.#expect('following')
    for (const part of this.#received.takePending()) part.release()
  }

  /** Forgets the epochs whose commits will never be. */
  discardCut(): void {
    this.#received.discardCut()
  }

  /**
   * Failover: the last checkpoint with the secondary guest's own writes is the disk from now on, and writes go
   * through to the image. Does nothing when already active.
   */
  activate(): void {
    if (this.#role === 'active') return
    this.#expect('following')
    this.#role = 'active'
    assert(!this.#received.hasCut, 'a promote comes after every commit that was begun')
    const [local, received] = [this.#local, this.#received.takePending()]
    this.#local = this.#newEpoch()
    this.#commit(local, undefined)
    for (const part of received) part.release()
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
    const layers = [...this.#sealed, ...this.#received.layers]
    const rest = takeHeld(layers, into, at)
    const [first, last] = [rest.gaps[0], rest.gaps.at(-1)]
    if (first === undefined || last === undefined) return readRest(this.#image, rest, into, at)
    // What the flusher writes now is in none of the gaps. What is newer than this instant comes after this read: the lock is fair.
    const locked = this.#lock.acquire(first.at, last.end - first.at)
    return then(locked, (ticket) =>
      ensure(
        () => readRest(this.#image, rest, into, at),
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
    for (const layer of [...this.#received.layers, this.#local, ...this.#sealed]) layer.release()
    this.#sealed = []
    this.#readable = []
  }

  /** The checkpoint is in the image when the last of the parts is. */
  #commitAll(parts: Parts, checkpoint: number | undefined): void {
    for (const [index, part] of parts.entries())
      this.#commit(part, index === parts.length - 1 ? checkpoint : undefined)
  }

  /** Makes `epoch` the newest sealed one. */
  #commit(epoch: Layer, checkpoint: number | undefined): void {
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
