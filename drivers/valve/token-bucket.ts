/**
 * A limit on something per second, as a bucket that fills at the rate and is emptied by what passes. Pure: time is an
 * input, in milliseconds on any clock that does not run backwards.
 *
 * Invariants:
 *  - In any interval of t seconds at most rate * t + burst passes, plus what one request is larger than the burst.
 *  - A request larger than the burst passes when the bucket is full, and leaves a debt that later ones wait for.
 */

export class TokenBucket {
  /** Per second. */
  readonly rate: number
  /** What a full bucket holds. */
  readonly burst: number
  #level: number
  #seenMs: number

  /** It starts full. */
  constructor(rate: number, burst: number, nowMs: number) {
    this.rate = rate
    this.burst = burst
    this.#level = burst
    this.#seenMs = nowMs
  }

  /** How long a request of `cost` must wait from now, in milliseconds; 0 when it may pass. */
  waitMs(cost: number, nowMs: number): number {
    const gained = ((nowMs - this.#seenMs) / 1000) * this.rate
    this.#level = Math.min(this.burst, this.#level + gained)
    this.#seenMs = nowMs
    if (cost === 0) return 0
    const missing = Math.min(cost, this.burst) - this.#level
    return missing <= 0 ? 0 : (missing / this.rate) * 1000
  }

  /** A request of `cost` passes. */
  take(cost: number): void {
    this.#level -= cost
  }
}
