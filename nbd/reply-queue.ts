/**
 * Collects simple replies and hands them to the socket in one batch, so that a burst of requests costs one writev.
 *
 * Invariants:
 *  - A reply's memory is given back exactly once: when the socket has taken its batch over to the system, or when the
 *    socket is closed.
 *  - At most `capacity` replies are between `add…` and `drained`, the window of the connection: header memory is a
 *    ring of that many headers and needs no pool.
 */

import { assert } from '../core/assert.ts'
import type { PoolSlot } from '../core/buffer-pool.ts'
import { NBD_OK, NBD_SIMPLE_REPLY_MAGIC, SIMPLE_REPLY_SIZE } from './protocol.ts'

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

  constructor(socket: ReplySocket, owner: ReplyQueueOwner, capacity: number) {
    this.#socket = socket
    this.#owner = owner
    this.#headers = Buffer.alloc(capacity * SIMPLE_REPLY_SIZE)
  }

  /** Replies added and not drained. */
  get undrained(): number {
    return this.#undrained
  }

  /** A reply without data. */
  addHeader(error: number, cookieHigh: number, cookieLow: number): void {
    if (this.#headerEnd === this.#headers.length) {
      this.#closeRun()
      this.#headerEnd = 0
      this.#runStart = 0
    }
    writeSimpleReply(this.#headers, this.#headerEnd, error, cookieHigh, cookieLow)
    this.#headerEnd += SIMPLE_REPLY_SIZE
    this.#batch.count += 1
    this.#undrained += 1
    assert(this.#undrained * SIMPLE_REPLY_SIZE <= this.#headers.length, 'replies fit the window')
  }

  /** A reply whose header and data are `bytes`, in the memory of `slot`. */
  addWhole(bytes: Buffer, slot: PoolSlot): void {
    this.#closeRun()
    this.#chunks.push(bytes)
    this.#batch.slots.push(slot)
    this.#batch.count += 1
    this.#undrained += 1
  }

  /** A successful reply with data that stands alone in the memory of `slot`. */
  addHeaderAndData(cookieHigh: number, cookieLow: number, data: Buffer, slot: PoolSlot): void {
    this.addHeader(NBD_OK, cookieHigh, cookieLow)
    this.#closeRun()
    this.#chunks.push(data)
    this.#batch.slots.push(slot)
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

/** magic u32, error u32, cookie u64 (section "Simple reply message"). */
export function writeSimpleReply(
  bytes: Buffer,
  at: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): void {
  bytes.writeUInt32BE(NBD_SIMPLE_REPLY_MAGIC, at)
  bytes.writeUInt32BE(error, at + 4)
  bytes.writeUInt32BE(cookieHigh, at + 8)
  bytes.writeUInt32BE(cookieLow, at + 12)
}
