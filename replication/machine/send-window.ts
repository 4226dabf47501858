/**
 * How far a primary may be ahead of its secondary: data that was sent and is not known to have arrived. A checkpoint waits for
 * all of it, and the buffers of two kernels would hold tens of megabytes. Pure, and on the hot path.
 *
 * The limit follows the time that data is under way. The shortest time seen on the link is the way itself; what comes on top is
 * waiting, and more than MOST_WAIT_MS of that makes the limit smaller, while less lets it grow where writes had to wait for it. So
 * a fast link is filled and a slow one is not flooded, whatever the distance (the idea of TCP Vegas, Brakmo and Peterson 1995).
 *
 * Invariants:
 *  - The limit is the least window or more, and MOST of them or less.
 *  - What may complete once may complete for ever, though the limit became smaller.
 *  - Memory is bounded by the frames that the peer has not told to have.
 */

import { MiB } from '../../core/units.ts'

/** Bytes that may be under way in any case: a millisecond of a link of 8 Gbit/s. */
export const LEAST_WINDOW = 1 * MiB
/** As parts of it: the window of a new link, the largest one, and the bytes after which the peer tells what it has. */
const FIRST = 2
const MOST = 32
export const STEPS = 4
/** How long data may wait on its way, beside the time of the way itself. */
const MOST_WAIT_MS = 1
const GROWTH = 1.25

export class SendWindow {
  readonly #least: number
  #limit: number
  #sent = 0
  #sentBytes = 0
  #received = 0
  #receivedBytes = 0
  /** The last frame whose write may complete. */
  #within = 0
  /** Of the frames after #received, from #head on: bytes up to the end of each, and when it was sent. */
  #ends: number[] = []
  #times: number[] = []
  #head = 0
  #shortestMs = Infinity
  /** Since the limit was last changed: whether a write had to wait for it, and until when answers tell of before. */
  #wasFull = false
  #settlesMs = 0

  /** @param least bytes that may be under way in any case */
  constructor(least = LEAST_WINDOW) {
    this.#least = least
    this.#limit = FIRST * least
  }

  /** Bytes that may be under way. */
  get limit(): number {
    return this.#limit
  }

  /** The last frame, counted from 1, whose write may complete. */
  get within(): number {
    return this.#within
  }

  send(bytes: number, nowMs: number): void {
    this.#sent += 1
    this.#sentBytes += bytes
    this.#ends.push(this.#sentBytes)
    this.#times.push(nowMs)
    this.#advance()
  }

  /** The peer has all frames up to this one. */
  receive(position: number, nowMs: number): void {
    const count = position - this.#received
    if (count <= 0) return
    const last = this.#head + count - 1
    const sentMs = this.#times[last] ?? nowMs
    this.#receivedBytes = this.#ends[last] ?? this.#sentBytes
    this.#received = position
    this.#head = last + 1
    if (this.#head * 2 > this.#ends.length) this.#forget()
    this.#adapt(nowMs - sentMs, nowMs)
    this.#advance()
  }

  #adapt(ageMs: number, nowMs: number): void {
    this.#shortestMs = Math.min(this.#shortestMs, ageMs)
    if (nowMs < this.#settlesMs) return
    const allowedMs = this.#shortestMs + MOST_WAIT_MS
    if (ageMs > allowedMs) this.#limit *= Math.max(0.5, allowedMs / ageMs)
    else if (this.#wasFull) this.#limit *= GROWTH
    else return
    this.#limit = Math.min(MOST * this.#least, Math.max(this.#least, this.#limit))
    this.#wasFull = false
    this.#settlesMs = nowMs + ageMs
  }

  #advance(): void {
    this.#within = Math.max(this.#within, this.#received)
    const most = this.#receivedBytes + this.#limit
    while (this.#within < this.#sent) {
      const end = this.#ends[this.#head + this.#within - this.#received] ?? 0
      if (end > most) {
        this.#wasFull = true
        return
      }
      this.#within += 1
    }
  }

  #forget(): void {
    this.#ends = this.#ends.slice(this.#head)
    this.#times = this.#times.slice(this.#head)
    this.#head = 0
  }
}
