/**
 * Turns a stream of bytes, cut anywhere, into messages. They are decoded in place: in a chunk that somebody lends, or in
 * the memory that the reader offers for the bytes to be read into.
 *
 * Invariants:
 *  - Memory is bounded by a few of the largest messages whatever the peer sends; before its first message was whole, by that one.
 *  - A message is decoded once all of it is there, and taken once. What comes after the one at which the taker had enough is
 *    held, and goes to whoever calls next.
 */

import { assert } from '../../core/assert.ts'

/** How one kind of messages lies in a stream. */
export interface Framing<Message> {
  /** Bytes of the largest message. */
  readonly largest: number
  /**
   * Decodes the message at `start` of `bytes`, of which the part before `end` has arrived, into `out`.
   * @returns the offset behind the message, or -1 while it is incomplete
   * @throws Fault PROTOCOL when the bytes cannot be a message
   */
  decode(bytes: Buffer, start: number, end: number, out: Message): number
  /** How much of the message at the start of `bytes`, an incomplete one of which `have` bytes are there, is needed to go on. */
  needed(bytes: Buffer, have: number): number
}

const FIRST_MEMORY = 4096
const GROWTH = 4

export class StreamReader<Message> {
  readonly #framing: Framing<Message>
  readonly #message: Message
  /** Grows to what the peer really sends: most links carry small messages only. */
  #memory = Buffer.alloc(FIRST_MEMORY)
  /** What has arrived and is not decoded lies in [#from, #end) of the memory. */
  #from = 0
  #end = 0
  #hasTaken = false

  /** @param message is decoded into again and again */
  constructor(framing: Framing<Message>, message: Message) {
    this.#framing = framing
    this.#message = message
  }

  /**
   * Calls `take` for each message that `chunk` completes, in order, until it returns false. What the message carries is
   * valid during the call only.
   * @throws Fault PROTOCOL when the bytes cannot be messages; the reader must not be used again then
   */
  push(chunk: Buffer, take: (message: Message) => boolean): void {
    let at = 0
    let goesOn = this.goOn(take)
    while (goesOn && this.#held > 0 && at < chunk.length) {
      const length = Math.min(this.#wanted(), chunk.length - at)
      this.#keep(chunk, at, length)
      at += length
      goesOn = this.goOn(take)
    }
    while (goesOn && at < chunk.length) {
      const behind = this.#framing.decode(chunk, at, chunk.length, this.#message)
      if (behind === -1) break
      at = behind
      this.#hasTaken = true
      goesOn = take(this.#message)
    }
    if (at < chunk.length) this.#keep(chunk, at, chunk.length - at)
  }

  /** Memory for the bytes that come next, for filled(); never empty. Until then only goOn() may be called. */
  room(): Buffer {
    if (this.#held === 0) this.#from = this.#end = 0
    // What is left at the end is too little to be worth a read: the message that was begun there moves to the front.
    const worth = Math.max(this.#wanted(), this.#memory.length / GROWTH)
    if (this.#memory.length - this.#end < worth) this.#makeRoom(worth)
    return this.#memory.subarray(this.#end)
  }

  /** The same as push(), with `count` bytes that were read into room(). @throws as push() */
  filled(count: number, take: (message: Message) => boolean): void {
    this.#end += count
    const isFull = this.#end === this.#memory.length
    // Whoever sends faster than this is read in larger pieces.
    if (this.goOn(take) && isFull && this.#hasTaken)
      this.#resize(this.#memory.length * GROWTH, GROWTH)
  }

  /**
   * Takes what is held and whole, as push() does. Moves nothing: room() may be being read into.
   * @returns false when the taker has had enough
   */
  goOn(take: (message: Message) => boolean): boolean {
    while (this.#from < this.#end) {
      const behind = this.#framing.decode(this.#memory, this.#from, this.#end, this.#message)
      if (behind === -1) return true
      this.#from = behind
      this.#hasTaken = true
      if (!take(this.#message)) return false
    }
    return true
  }

  get #held(): number {
    return this.#end - this.#from
  }

  /** Bytes that the message in the memory lacks, as far as that can be known. */
  #wanted(): number {
    const begun = this.#from === 0 ? this.#memory : this.#memory.subarray(this.#from)
    return this.#framing.needed(begun, this.#held) - this.#held
  }

  #keep(chunk: Buffer, at: number, length: number): void {
    if (this.#memory.length - this.#end < length) this.#makeRoom(length)
    assert(
      this.#memory.length - this.#end >= length,
      'a reader is given no more than it has room for',
    )
    chunk.copy(this.#memory, this.#end, at, at + length)
    this.#end += length
  }

  #makeRoom(length: number): void {
    const needed = this.#held + length
    if (needed > this.#memory.length)
      this.#resize(Math.max(needed, this.#memory.length * GROWTH), 1)
    if (this.#from > 0) this.#move(this.#memory)
  }

  /** @param most of the largest messages */
  #resize(wanted: number, most: number): void {
    const size = Math.min(wanted, most * this.#framing.largest)
    if (size <= this.#memory.length) return
    const grown = Buffer.alloc(size)
    this.#move(grown)
    this.#memory = grown
  }

  /** What is held lies at the start of `into` then. */
  #move(into: Buffer): void {
    this.#memory.copy(into, 0, this.#from, this.#end)
    this.#end -= this.#from
    this.#from = 0
  }
}
