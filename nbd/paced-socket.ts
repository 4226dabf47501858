/**
 * A TLS socket that is given no more than it can send soon.
 *
 * What TLS is given it encrypts at once, into memory of its own. Without a bound the replies that a slow client does not
 * take would be in memory twice, and a few large ones would hold up everybody else while they are encrypted.
 *
 * Invariants:
 *  - At most `TAKE` bytes, or one piece, are with TLS at a time; the rest waits in the memory that it is in already.
 *  - Pieces leave in order, and each `done` is called in order, once its piece has left. None is called for pieces that were not
 *    handed over when the socket closed.
 *  - What is written in one turn of the event loop leaves together: few records, few system calls.
 */

import type { ReplySocket } from './reply-queue.ts'
import { KiB } from '../core/units.ts'

/** A multiple of what one TLS record carries (16 KiB), and enough to keep a fast client busy. */
const TAKE = 256 * KiB

/** What is needed of a socket. */
interface Sink {
  cork(): void
  uncork(): void
  write(bytes: Buffer, done?: (error?: Error | null) => void): boolean
}

interface Piece {
  readonly bytes: Buffer
  readonly done: (() => void) | undefined
}

export class PacedSocket implements ReplySocket {
  readonly #sink: Sink
  #waiting: Piece[] = []
  /** What TLS has. */
  #sending: Piece[] = []
  #scheduled = false

  constructor(sink: Sink) {
    this.#sink = sink
  }

  /** Turns of the event loop are what puts pieces together here. */
  cork(): void {
    // Nothing to do: see above.
  }

  uncork(): void {
    // Nothing to do: see above.
  }

  write(bytes: Buffer, done?: () => void): boolean {
    for (let at = 0; at < bytes.length; at += TAKE) {
      const last = at + TAKE >= bytes.length
      this.#waiting.push({ bytes: bytes.subarray(at, at + TAKE), done: last ? done : undefined })
    }
    if (!this.#scheduled && this.#sending.length === 0) {
      this.#scheduled = true
      setImmediate(this.#onTurnEnd)
    }
    return this.#waiting.length === 0
  }

  readonly #onTurnEnd = (): void => {
    this.#scheduled = false
    this.#send()
  }

  #send(): void {
    let bytes = 0
    const end = this.#waiting.findIndex((piece, index) => {
      bytes += piece.bytes.length
      return index > 0 && bytes > TAKE
    })
    this.#sending = this.#waiting.splice(0, end === -1 ? this.#waiting.length : end)
    const last = this.#sending.at(-1)
    if (last === undefined) return
    this.#sink.cork()
    for (const piece of this.#sending) {
      if (piece === last) this.#sink.write(piece.bytes, this.#onSent)
      else this.#sink.write(piece.bytes)
    }
    this.#sink.uncork()
  }

  readonly #onSent = (error?: Error | null): void => {
    if (error !== undefined && error !== null) return
    const sent = this.#sending
    this.#send()
    for (const { done } of sent) done?.()
  }
}
