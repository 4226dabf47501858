/**
 * Cuts the byte stream from a server into simple replies. Pure: the client says where a reply's data goes.
 *
 * Invariants:
 *  - How the bytes are cut makes no difference.
 *  - Data is written only to the memory that `begin` gave for it, and reported once all of it is there.
 */

import { NBD_SIMPLE_REPLY_MAGIC, SIMPLE_REPLY_SIZE } from './protocol.ts'

export interface ReplySink {
  /**
   * A reply's header. Gives the memory for the data that follows (empty when none does), or undefined when nothing
   * was asked under this cookie, which ends the stream.
   */
  begin(error: number, cookieHigh: number, cookieLow: number): Buffer | undefined
  /** The reply that began last is complete. */
  complete(): void
}

/** Data at least this long, in bytes, is worth a read of its own. */
const WORTH_A_READ = 16 * 1024

export class ReplyDecoder {
  readonly #sink: ReplySink
  readonly #partial = Buffer.alloc(SIMPLE_REPLY_SIZE)
  #target: Buffer | undefined
  /** Bytes there of the header, or of the data while there is a target. */
  #count = 0
  #violation: string | undefined
  #lastWasLarge = false

  constructor(sink: ReplySink) {
    this.#sink = sink
  }

  /** Why the connection must be given up, once the server has broken the protocol. */
  get violation(): string | undefined {
    return this.#violation
  }

  /** The last reply was large, so the next one probably is. */
  get expectsLargeData(): boolean {
    return this.#lastWasLarge
  }

  /** Where the next bytes can be read to directly; report them to `filled`. */
  get destination(): Buffer | undefined {
    if (this.#target === undefined || this.#target.length - this.#count < WORTH_A_READ)
      return undefined
    return this.#target.subarray(this.#count)
  }

  filled(count: number): void {
    this.#count += count
    if (this.#count === this.#target?.length) this.#complete()
  }

  /** Decodes all of `bytes` up to `to`, unless the protocol is broken. */
  push(bytes: Buffer, to: number): void {
    let at = 0
    while (at < to && this.#violation === undefined) {
      if (this.#target !== undefined) {
        const taken = bytes.copy(this.#target, this.#count, at, to)
        at += taken
        this.filled(taken)
      } else if (this.#count === 0 && to - at >= SIMPLE_REPLY_SIZE) {
        this.#header(bytes, at)
        at += SIMPLE_REPLY_SIZE
      } else {
        const taken = bytes.copy(this.#partial, this.#count, at, to)
        this.#count += taken
        at += taken
        if (this.#count === SIMPLE_REPLY_SIZE) this.#header(this.#partial, 0)
      }
    }
  }

  #header(bytes: Buffer, at: number): void {
    this.#count = 0
    if (bytes.readUInt32BE(at) !== NBD_SIMPLE_REPLY_MAGIC) {
      this.#violation = 'a reply without its magic'
      return
    }
    const target = this.#sink.begin(
      bytes.readUInt32BE(at + 4),
      bytes.readUInt32BE(at + 8),
      bytes.readUInt32BE(at + 12),
    )
    if (target === undefined) {
      this.#violation = 'a reply to something not asked'
      return
    }
    this.#lastWasLarge = target.length >= WORTH_A_READ
    if (target.length === 0) this.#complete()
    else this.#target = target
  }

  #complete(): void {
    this.#target = undefined
    this.#count = 0
    this.#sink.complete()
  }
}
