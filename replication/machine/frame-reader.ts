/**
 * Turns a stream of chunks, cut anywhere, into frames. Frames that lie whole in a chunk are decoded in place; only one
 * that spans chunks is put together in a buffer of its own.
 *
 * Invariant: at most one frame is held, so memory is bounded by HEADER_SIZE + MAX_PAYLOAD whatever the peer sends.
 */

import { decodeFrame, frame, HEADER_SIZE, MAX_PAYLOAD, payloadLength, type Frame } from './frame.ts'

export class FrameReader {
  readonly #frame: Frame = frame('heartbeat')
  /** Grows to what the peer really sends: most links carry small frames only. */
  #partial = Buffer.alloc(4096)
  #have = 0

  /**
   * Calls `take` for each frame that `chunk` completes, in order, until it returns false. The frame's payload is valid
   * during the call only.
   * @throws Fault PROTOCOL when the bytes cannot be frames; the reader must not be used again then
   */
  push(chunk: Buffer, take: (frame: Frame) => boolean): void {
    let at = 0
    while (this.#have > 0 && at < chunk.length) {
      at += this.#complete(chunk, at)
      const behind = decodeFrame(this.#partial, 0, this.#have, this.#frame)
      if (behind === -1) continue
      this.#have = 0
      if (!take(this.#frame)) return
    }
    while (at < chunk.length) {
      const behind = decodeFrame(chunk, at, chunk.length, this.#frame)
      if (behind === -1) break
      at = behind
      if (!take(this.#frame)) return
    }
    if (at < chunk.length) this.#keep(chunk, at, chunk.length - at)
  }

  /** Adds to the partial frame what it still lacks, no more. @returns bytes taken */
  #complete(chunk: Buffer, at: number): number {
    const wanted =
      this.#have < HEADER_SIZE ? HEADER_SIZE : HEADER_SIZE + payloadLength(this.#partial)
    const length = Math.min(wanted - this.#have, chunk.length - at)
    this.#keep(chunk, at, length)
    return length
  }

  #keep(chunk: Buffer, at: number, length: number): void {
    const needed = this.#have + length
    if (needed > this.#partial.length) {
      const grown = Buffer.alloc(
        Math.min(HEADER_SIZE + MAX_PAYLOAD, Math.max(needed, this.#partial.length * 4)),
      )
      this.#partial.copy(grown, 0, 0, this.#have)
      this.#partial = grown
    }
    chunk.copy(this.#partial, this.#have, at, at + length)
    this.#have += length
  }
}
