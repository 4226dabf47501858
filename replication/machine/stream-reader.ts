/**
 * Turns a stream of chunks, cut anywhere, into messages. Messages that lie whole in a chunk are decoded in place; only
 * one that spans chunks is put together in a buffer of its own.
 *
 * Invariant: at most one message is held, so memory is bounded by the largest one whatever the peer sends.
 */

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

export class StreamReader<Message> {
  readonly #framing: Framing<Message>
  readonly #message: Message
  /** Grows to what the peer really sends: most links carry small messages only. */
  #partial = Buffer.alloc(4096)
  #have = 0

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
    while (this.#have > 0 && at < chunk.length) {
      at += this.#complete(chunk, at)
      const behind = this.#framing.decode(this.#partial, 0, this.#have, this.#message)
      if (behind === -1) continue
      this.#have = 0
      if (!take(this.#message)) return
    }
    while (at < chunk.length) {
      const behind = this.#framing.decode(chunk, at, chunk.length, this.#message)
      if (behind === -1) break
      at = behind
      if (!take(this.#message)) return
    }
    if (at < chunk.length) this.#keep(chunk, at, chunk.length - at)
  }

  /** Adds to the partial message what it still lacks, no more. @returns bytes taken */
  #complete(chunk: Buffer, at: number): number {
    const wanted = this.#framing.needed(this.#partial, this.#have)
    const length = Math.min(wanted - this.#have, chunk.length - at)
    this.#keep(chunk, at, length)
    return length
  }

  #keep(chunk: Buffer, at: number, length: number): void {
    const needed = this.#have + length
    if (needed > this.#partial.length) {
      const grown = Buffer.alloc(
        Math.min(this.#framing.largest, Math.max(needed, this.#partial.length * 4)),
      )
      this.#partial.copy(grown, 0, 0, this.#have)
      this.#partial = grown
    }
    chunk.copy(this.#partial, this.#have, at, at + length)
    this.#have += length
  }
}
