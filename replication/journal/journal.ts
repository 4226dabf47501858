/**
 * A secondary's journal: received epochs and their commits on stable storage, in the order in which they came.
 *
 * Invariants:
 *  - 3  A commit resolves only when its record and all before it survive a crash.
 *  - Records are written in the order of the calls, by one writer; the caller's bytes are copied at once.
 *  - 20 Memory is bounded by the caller, who takes no more data while `backlog` is above MOST_BACKLOG.
 *  - After a failure nothing more is written, and every commit fails, until restart() has begun a new segment that says
 *    what counts. So a commit that was reported as failed never comes back.
 *  - A segment is removed when nobody needs it (segment-list.ts).
 *  - A record says which commit was reported, so that its loss shows even when nothing else is wrong behind it.
 */

import { assert } from '../../core/assert.ts'
import { asFault, Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import { KiB, MiB } from '../../core/units.ts'
import { encodeHeader, frame, HEADER_SIZE, MAX_PAYLOAD, type Frame } from '../machine/frame.ts'
import type { EpochLog, Standing } from './epoch-log.ts'
import type { DiskIdentity } from '../machine/handshake.ts'
import type { ReplicaState } from '../machine/replica-state.ts'
import { commitRecord, segmentRecord, stateRecord, type JournalIdentity } from './records.ts'
import type { Recovered } from './recovery.ts'
import { SegmentList } from './segment-list.ts'
import type { SegmentFile, SegmentStore } from './segments.ts'
import { placeOf, SpilledRecords } from './spilled-records.ts'

/** Bytes after which a new segment is begun, and the share of the limit that one segment is at most. */
const SEGMENT = 64 * MiB
const SEGMENTS = 4
/** Bytes of one buffer of records: four of the longest. */
const CHUNK = 4 * (HEADER_SIZE + MAX_PAYLOAD)
/** Buffers kept for later: as many as the backlog fills, so that none is made anew, and touched for the first time, under load. */
const SPARE_CHUNKS = 32
/** Bytes written and not yet durable, beyond which they are made so: what is left for a commit costs hardly more than nothing. */
const MOST_UNSYNCED = 256 * KiB
/**
 * Bytes accepted and not durable, beyond which the caller should take no more, and at which it may go on. A commit waits for
 * what is there: so much is on stable storage in a few milliseconds, and less makes it slower.
 */
export const MOST_BACKLOG = 4 * MiB
const SMALL_BACKLOG = MOST_BACKLOG / 2

export interface JournalOptions {
  readonly store: SegmentStore
  readonly identity: JournalIdentity
  readonly replica: string
  readonly state: ReplicaState
  readonly recovered: Recovered | undefined
  readonly logger: Logger
  /** Something could not be written. Called once for each time that the journal ceases to work. */
  readonly onFailure: (fault: Fault) => void
  /** Bytes that the journal may grow to. */
  readonly limit: number
}

type Work =
  | { readonly kind: 'bytes'; readonly chunk: Buffer; length: number; end: number }
  | { readonly kind: 'segment'; readonly number: number; readonly header: Buffer; end: number }

interface Waiter {
  readonly position: number
  readonly resolve: () => void
  readonly reject: (fault: Fault) => void
}

export class Journal implements EpochLog {
  readonly durable = true
  readonly records: SpilledRecords
  readonly #options: JournalOptions
  readonly #segmentBytes: number
  #identity: JournalIdentity
  /** As queued last, and as it is known to be durable. */
  #state: ReplicaState
  #remembered: ReplicaState
  /** Queued, and not known to be durable. */
  readonly #pending = new Set<{ state: ReplicaState }>()
  /** The last one is written to. */
  readonly #segments: SegmentList
  /** The last checkpoint whose record was queued, that is durable, that is in the image of each disk. */
  #queuedCommit: number
  #committed: number
  #flushed: number[]
  #file: SegmentFile | undefined
  #queue: Work[] = []
  #spare: Buffer[] = []
  #waiters: Waiter[] = []
  #drained: (() => void)[] = []
  /** Positions in the stream of all records since the start, in bytes: queued, written, durable. */
  #queued = 0
  #written = 0
  #synced = 0
  #pumping: Promise<void> | undefined
  /** Tells the pump, where it waits for a flush, that there is something to write beside it. */
  #wake: (() => void) | undefined
  /** Under way beside the writes; never rejects. */
  #syncing: Promise<void> | undefined
  #syncFault: Fault | undefined
  #failed: Fault | undefined
  /** Segments are being removed, beside the writes: to give up a long file takes longer than a commit may. */
  #removing: Promise<void> | undefined
  #closed = false

  constructor(options: JournalOptions) {
    const { recovered, state, identity, limit } = options
    this.#options = options
    this.#identity = identity
    this.#segmentBytes = Math.min(SEGMENT, limit / SEGMENTS)
    this.#state = state
    this.#remembered = state
    this.#segments = new SegmentList(recovered?.segments ?? [])
    this.records = new SpilledRecords(this.#segments.nextNumber, {
      store: options.store,
      written: () => this.sync(),
      pin: (segment) => this.#segments.pin(segment, () => this.#trim()),
    })
    this.#committed = recovered?.committed ?? 0
    this.#queuedCommit = this.#committed
    this.#flushed = [...(recovered?.flushed ?? identity.disks.map(() => 0))]
  }

  /** What this journal is known by, for as long as it exists. */
  get replica(): string {
    return this.#options.replica
  }

  get failure(): Fault | undefined {
    return this.#failed
  }

  get backlog(): number {
    return this.#queued - this.#synced
  }

  get progress(): number {
    return this.#written + this.#synced
  }

  get bytes(): number {
    return this.#segments.bytes
  }

  async change(disks: readonly DiskIdentity[], stand: Standing): Promise<void> {
    const before = this.#identity.disks
    this.#flushed = disks.map(({ name }) => {
      const index = before.findIndex((disk) => disk.name === name)
      return index === -1 ? this.#committed : (this.#flushed[index] ?? 0)
    })
    this.#identity = { ...this.#identity, disks: [...disks] }
    // Whatever is remembered from now on is of these disks: in a state of before, one that was added would count.
    const changed = (state: ReplicaState): ReplicaState => ({ ...state, apart: stand(state.apart) })
    this.#state = changed(this.#state)
    this.#remembered = changed(this.#remembered)
    for (const pending of this.#pending) pending.state = changed(pending.state)
    if (this.#failed !== undefined) return
    this.#newSegment(this.#segments.lastBytes ?? null)
    await this.#durable()
  }

  keep(): () => void {
    // All behind it: there is no segment before the first.
    return this.#segments.pin(0, () => this.#trim())
  }

  /** Begins a new segment that says what counts of the ones before; also after a failure. @throws Fault */
  async restart(): Promise<void> {
    await this.#pumping
    assert(!this.#closed, 'a closed journal is not restarted')
    // First: what nobody needs may be what fills the disk.
    this.#trim()
    await this.#removing
    this.#failed = undefined
    this.#queuedCommit = this.#committed
    this.#newSegment(null)
    try {
      await this.#durable()
      this.#trim()
    } catch (error) {
      throw asFault(error, 'IO', 'the journal cannot be written', this.#context())
    }
  }

  append(record: Readonly<Frame>): number | undefined {
    if (this.#failed !== undefined) return undefined
    const place = this.#put(record)
    this.#start()
    return place
  }

  async sync(): Promise<void> {
    if (this.#failed !== undefined) throw this.#failed
    if (this.#synced < this.#queued) await this.#durable()
  }

  discard(): void {
    if (this.#failed !== undefined) return
    this.#segments.settle(this.#queuedCommit)
    this.#put(frame('discard'))
    this.#start()
    this.#trim()
  }

  async persist(state: ReplicaState): Promise<void> {
    const before = this.#state
    const pending = this.#queueState(state)
    try {
      if (this.#failed !== undefined) await this.restart()
      else {
        this.#put(stateRecord(state))
        await this.#durable()
      }
      this.#remembered = pending.state
    } catch (error) {
      if (this.#state === state) this.#state = before
      throw error
    } finally {
      this.#pending.delete(pending)
    }
  }

  async commit(
    checkpoint: number,
    state: ReplicaState,
    committed: () => void = () => undefined,
  ): Promise<void> {
    if (this.#failed !== undefined) throw this.#failed
    assert(checkpoint > this.#queuedCommit, 'checkpoints are committed in order')
    // Where the segment is full as well: a guest may wait for this, and not for the record behind it, which begins the next.
    this.#add(commitRecord(checkpoint, state))
    this.#queuedCommit = checkpoint
    const pending = this.#queueState(state)
    this.#segments.settle(checkpoint)
    try {
      await this.#durable()
    } finally {
      this.#pending.delete(pending)
    }
    // It failed in the instant after: the segment that is begun then says that this does not count.
    if (this.failure !== undefined) throw this.failure
    this.#committed = checkpoint
    this.#remembered = pending.state
    committed()
    if (this.#closed) return
    this.#put(frame('done', { position: checkpoint }))
    this.#start()
  }

  /** What is queued now is of this state. */
  #queueState(state: ReplicaState): { readonly state: ReplicaState } {
    const pending = { state }
    this.#state = state
    this.#pending.add(pending)
    return pending
  }

  flushed(disk: number, checkpoint: number): void {
    this.#flushed[disk] = Math.max(this.#flushed[disk] ?? 0, checkpoint)
    this.#trim()
  }

  async retire(disk: number): Promise<void> {
    this.#flushed[disk] = this.#failed === undefined ? this.#queuedCommit : this.#committed
    if (this.#failed !== undefined) return this.restart()
    this.#newSegment(this.#segments.lastBytes ?? null)
    await this.#durable()
    this.#trim()
  }

  whenDrained(wake: () => void): void {
    if (this.backlog <= SMALL_BACKLOG) wake()
    else this.#drained.push(wake)
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await this.#pumping
    await this.#removing
    await this.#file?.close()
    await this.#options.store.close()
  }

  /** Adds a record to a segment that has room. @returns where the record is */
  #put(record: Readonly<Frame>): number {
    const { lastBytes } = this.#segments
    if (lastBytes !== undefined && lastBytes >= this.#segmentBytes) this.#newSegment(lastBytes)
    return this.#add(record)
  }

  #add(record: Readonly<Frame>): number {
    assert(
      this.#segments.lastBytes !== undefined && !this.#closed,
      'a journal is begun before it is written',
    )
    this.#copy(record)
    const isData = record.type === 'write' || record.type === 'zero'
    const { segment, at } = this.#segments.put(HEADER_SIZE + record.payload.length, isData)
    return placeOf(segment, at)
  }

  #copy(record: Readonly<Frame>): void {
    const size = HEADER_SIZE + record.payload.length
    let work = this.#queue.at(-1)
    if (work?.kind !== 'bytes' || work.length + size > CHUNK) {
      const chunk = this.#spare.pop() ?? Buffer.allocUnsafeSlow(CHUNK)
      work = { kind: 'bytes', chunk, length: 0, end: this.#queued }
      this.#queue.push(work)
    }
    record.payload.copy(work.chunk, work.length + HEADER_SIZE)
    encodeHeader(
      work.chunk,
      work.length,
      { ...record, payload: work.chunk.subarray(work.length + HEADER_SIZE, work.length + size) },
      true,
    )
    work.length += size
    this.#queued += size
    work.end = this.#queued
  }

  #newSegment(previousLength: number | null): void {
    const { replica } = this.#options
    const number = this.#segments.nextNumber
    const record = segmentRecord(number, {
      format: 1,
      ...this.#identity,
      replica,
      committed: this.#queuedCommit,
      flushed: [...this.#flushed],
      previousLength,
      state: this.#state,
    })
    assert(record.payload.length <= MAX_PAYLOAD, 'a segment header fits a record')
    const header = Buffer.alloc(HEADER_SIZE + record.payload.length)
    record.payload.copy(header, HEADER_SIZE)
    encodeHeader(header, 0, record, true)
    this.#queued += header.length
    this.#segments.add(number, header.length, this.#queuedCommit)
    this.#queue.push({ kind: 'segment', number, header, end: this.#queued })
  }

  /** Resolves when everything queued so far is durable. */
  #durable(): Promise<void> {
    const position = this.#queued
    const durable = new Promise<void>((resolve, reject) => {
      this.#waiters.push({ position, resolve, reject })
    })
    this.#start()
    return durable
  }

  #start(): void {
    this.#wake?.()
    this.#pumping ??= this.#pump()
  }

  async #pump(): Promise<void> {
    // What is queued in one turn of the event loop is written together.
    await Promise.resolve()
    try {
      for (;;) {
        if (this.#mustSync()) this.#beginSync()
        if (this.#queue.length > 0) await this.#work()
        else if (this.#syncing !== undefined) await this.#syncedOrWoken(this.#syncing)
        else break
        this.#checkSync()
      }
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      await this.#syncing
      this.#syncFault = undefined
      await this.#fail(error)
    }
    this.#pumping = undefined
  }

  #syncedOrWoken(syncing: Promise<void>): Promise<void> {
    return new Promise<void>((resolve) => {
      this.#wake = resolve
      void syncing.then(resolve)
    }).finally(() => (this.#wake = undefined))
  }

  #mustSync(): boolean {
    if (this.#written === this.#synced || this.#syncing !== undefined) return false
    const [first] = this.#waiters
    if (first !== undefined && first.position <= this.#written) return true
    return this.#written - this.#synced >= MOST_UNSYNCED
  }

  async #work(): Promise<void> {
    const [work] = this.#queue
    assert(work !== undefined, 'there is work to do')
    if (work.kind === 'bytes') return this.#write()
    await this.#sync()
    // The disk may have no room for both.
    await this.#removing
    return this.#begin(work.number, work.header, work.end)
  }

  /** Removes the oldest segments, as far as nobody needs them. */
  #trim(): void {
    if (this.#closed || this.#spent() === undefined) return
    this.#removing ??= this.#remove()
  }

  #spent(): number | undefined {
    return this.#segments.spent(Math.min(...this.#flushed))
  }

  /** Removes in order, and no further than the first that cannot be removed: a gap would look like damage. */
  async #remove(): Promise<void> {
    try {
      for (let oldest = this.#spent(); oldest !== undefined; oldest = this.#spent()) {
        await this.#options.store.remove(oldest)
        this.#segments.removed()
      }
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      this.#options.logger.warn({ error: error.message }, 'a journal segment stays behind')
    } finally {
      this.#removing = undefined
    }
  }

  /** A segment counts from when its header is durable: a later one may rely on it. */
  async #begin(number: number, header: Buffer, end: number): Promise<void> {
    await this.#file?.close()
    this.#file = undefined
    this.#file = await this.#options.store.create(number)
    await this.#file.append([header])
    await this.#file.sync()
    this.#segments.begun(number)
    this.records.begun(number, header.length)
    this.#queue.shift()
    this.#written = end
    this.#reach(end)
    this.#trim()
  }

  async #write(): Promise<void> {
    const count = this.#queue.findIndex(({ kind }) => kind !== 'bytes')
    const taken = this.#queue.splice(0, count === -1 ? this.#queue.length : count)
    const chunks: Buffer[] = []
    let end = this.#written
    for (const work of taken) {
      if (work.kind !== 'bytes') continue
      chunks.push(work.chunk.subarray(0, work.length))
      end = work.end
    }
    assert(this.#file !== undefined, 'a journal is begun before it is written')
    await this.#file.append(chunks)
    this.records.wrote(end - this.#written)
    this.#written = end
    for (const work of taken)
      if (work.kind === 'bytes' && this.#spare.length < SPARE_CHUNKS) this.#spare.push(work.chunk)
  }

  /** Makes what is written so far durable, while more may be written. */
  #beginSync(): void {
    const position = this.#written
    assert(this.#file !== undefined, 'a journal is begun before it is flushed')
    this.#syncing = this.#file.sync().then(
      () => {
        this.#syncing = undefined
        this.#reach(position)
      },
      (error: unknown) => {
        this.#syncing = undefined
        this.#syncFault = asFault(error, 'IO', 'cannot flush the journal')
      },
    )
  }

  /** @throws Fault when a flush that was under way has failed */
  #checkSync(): void {
    if (this.#syncFault !== undefined) throw this.#syncFault
  }

  /** Resolves when everything that is written is durable. @throws Fault */
  async #sync(): Promise<void> {
    await this.#syncing
    this.#checkSync()
    if (this.#written > this.#synced) {
      this.#beginSync()
      await this.#syncing
      this.#checkSync()
    }
  }

  /** Everything up to `position` is durable. */
  #reach(position: number): void {
    this.#synced = position
    while (this.#waiters[0] !== undefined && this.#waiters[0].position <= position)
      this.#waiters.shift()?.resolve()
    this.#wakeDrained()
  }

  async #fail(fault: Fault): Promise<void> {
    const failure = asFault(fault, 'IO', 'the journal cannot be written', this.#context())
    this.#failed = failure
    this.#queue = []
    this.#written = this.#queued
    this.#synced = this.#queued
    // What was queued never happened; the next segment says so. One that did not begin gives its number to it.
    this.#state = this.#remembered
    this.#segments.dropUnbegun()
    this.#segments.settle(this.#committed)
    const waiters = this.#waiters
    this.#waiters = []
    const file = this.#file
    this.#file = undefined
    for (const { reject } of waiters) reject(failure)
    this.#options.onFailure(failure)
    this.#wakeDrained()
    await file?.close().catch(() => undefined)
  }

  #wakeDrained(): void {
    if (this.backlog > SMALL_BACKLOG) return
    const drained = this.#drained
    this.#drained = []
    for (const wake of drained) wake()
  }

  #context(): { where: string; remedy: string } {
    return {
      where: this.#options.store.place,
      remedy: 'free space there, or repair the disk; checkpoints are refused until then',
    }
  }
}
