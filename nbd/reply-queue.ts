/**
 * Collects replies and hands them to the socket in one batch, so that a burst of requests costs one writev.
 *
 * Invariants:
 *  - A reply's memory is given back exactly once: when the socket has taken its batch over to the system, or when the
 *    socket is closed.
 *  - At most `capacity` replies are between `add…` and `drained`, the window of the connection: header memory is a
 *    ring of that many headers, and one more for what is left unused at its end, and needs no pool.
 */

import { assert } from '../core/assert.ts'
import type { PoolSlot } from '../core/buffer-pool.ts'
import { errorChunk, writeSimpleReply, type Asked, type ReplyFormat } from './reply-format.ts'

/** What the queue needs of a socket. */
export interface ReplySocket {
  cork(): void
  uncork(): void
  write(bytes: Buffer, done?: () => void): boolean
}

export interface ReplyQueueOwner {
  /** `count` replies have left; their slots are the owner's to release. */
  drained(count: number, slots: readonly PoolSlot[]): void
}

/** The replies of one flush. */
class Batch {
  count = 0
  readonly slots: PoolSlot[] = []
}

export class ReplyQueue {
  readonly #socket: ReplySocket
  readonly #owner: ReplyQueueOwner
  readonly #format: ReplyFormat
  readonly #capacity: number
  readonly #headers: Buffer
  /** Next free header, and the start of the run of headers not yet a chunk, in bytes. */
  #headerEnd = 0
  #runStart = 0
  #chunks: Buffer[] = []
  #batch = new Batch()
  /** Batches given to the socket, oldest first; it finishes them in this order. */
  #sent: Batch[] = []
  #spare: Batch[] = []
  #undrained = 0
  #scheduled = false
  #closed = false

  constructor(socket: ReplySocket, owner: ReplyQueueOwner, format: ReplyFormat, capacity: number) {
    this.#socket = socket
    this.#owner = owner
    this.#format = format
    this.#capacity = capacity
    this.#headers = Buffer.alloc((capacity + 1) * format.dataHeaderSize)
  }

  /** Replies added and not drained. */
  get undrained(): number {
    return this.#undrained
  }

  /** A success without data. */
  addDone(asked: Asked): void {
    this.#format.writeDone(this.#headers, this.#header(this.#format.doneSize), asked)
    this.#count()
  }

  /** A failure; `reason` is for people, where the client can be told one. */
  addError(asked: Asked, error: number, reason: string): void {
    if (this.#format.kind === 'simple') {
      writeSimpleReply(this.#headers, this.#header(this.#format.doneSize), error, asked)
    } else {
      this.#closeRun()
      this.#chunks.push(errorChunk(this.#format, asked, error, reason))
    }
    this.#count()
  }

  /** A reply that is all in the memory of `slot`: header and data, or status chunks. */
  addWhole(bytes: Buffer, slot: PoolSlot): void {
    this.#closeRun()
    this.#chunks.push(bytes)
    this.#batch.slots.push(slot)
    this.#count()
  }

  /** A reply in any number of pieces, whose data is in the memory of `slot`. */
  addPieces(pieces: readonly Buffer[], slot: PoolSlot): void {
    this.#closeRun()
    for (const piece of pieces) this.#chunks.push(piece)
    this.#batch.slots.push(slot)
    this.#count()
  }

  /** A successful READ from byte `offset` whose data stands alone in the memory of `slot`. */
  addHeaderAndData(asked: Asked, offset: number, data: Buffer, slot: PoolSlot): void {
    const at = this.#header(this.#format.dataHeaderSize)
    this.#format.writeDataHeader(this.#headers, at, asked, offset, data.length)
    this.#closeRun()
    this.#chunks.push(data)
    this.#batch.slots.push(slot)
    this.#count()
  }

  /** Flushes once the events of this turn have been handled: completions tend to come in groups. */
  schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(this.#onTurnEnd)
  }

  /** Hands everything that was added to the socket. */
  flush(): void {
    this.#closeRun()
    if (this.#chunks.length === 0 || this.#closed) return
    const chunks = this.#chunks
    const last = chunks.length - 1
    this.#sent.push(this.#batch)
    this.#batch = this.#spare.pop() ?? new Batch()
    this.#chunks = []
    if (last > 0) this.#socket.cork()
    chunks.forEach((chunk, index) => {
      if (index === last) this.#socket.write(chunk, this.#onWritten)
      else this.#socket.write(chunk)
    })
    if (last > 0) this.#socket.uncork()
  }

  /** The socket is closed: nothing is in its hands any more. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    const batches = [...this.#sent, this.#batch]
    this.#sent = []
    this.#batch = new Batch()
    this.#chunks = []
    for (const batch of batches) this.#settle(batch)
  }

  #count(): void {
    this.#batch.count += 1
    this.#undrained += 1
    assert(this.#undrained <= this.#capacity, 'replies fit the window')
  }

  /** Room for a header of `size` bytes; gives its position. */
  #header(size: number): number {
    if (this.#headerEnd + size > this.#headers.length) {
      this.#closeRun()
      this.#headerEnd = 0
      this.#runStart = 0
    }
    const at = this.#headerEnd
    this.#headerEnd += size
    return at
  }

  #closeRun(): void {
    if (this.#headerEnd === this.#runStart) return
    this.#chunks.push(this.#headers.subarray(this.#runStart, this.#headerEnd))
    this.#runStart = this.#headerEnd
  }

  readonly #onTurnEnd = (): void => {
    this.#scheduled = false
    this.flush()
  }

  readonly #onWritten = (): void => {
    const batch = this.#sent.shift()
    // After close() the socket may still report the writes that it gave up.
    if (batch === undefined) return
    this.#settle(batch)
    batch.count = 0
    batch.slots.length = 0
    if (this.#spare.length < 4) this.#spare.push(batch)
  }

  #settle(batch: Batch): void {
    this.#undrained -= batch.count
    this.#owner.drained(batch.count, batch.slots)
  }
}
