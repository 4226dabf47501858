/**
 * Whether it pays to look again and again for something that is about to happen, instead of sleeping until it has.
 *
 * To be woken takes tens of microseconds of a sleeping processor, often more than the work that it is woken for. So who
 * waits for a moment looks; who looked in vain more often than not leaves it be for a while, longer each time. What is
 * wasted stays a small share of the time, or is won back, however the waiting times change.
 */

/** Occasions left out after the latest of many failures. */
const MOST_LEFT_OUT = 31

/** Successes that are remembered, each to make up for a failure. */
const MOST_CREDIT = 16

export class AdaptivePolling {
  #credit = 0
  #leftOut = 0
  #toLeaveOut = 0

  /** Whether to look on this occasion. Follow with paidOff() or failed() where it says so. */
  tries(): boolean {
    if (this.#toLeaveOut === 0) return true
    this.#toLeaveOut -= 1
    return false
  }

  paidOff(): void {
    this.#leftOut = 0
    if (this.#credit < MOST_CREDIT) this.#credit += 1
  }

  failed(): void {
    if (this.#credit > 0) {
      this.#credit -= 1
      return
    }
    this.#leftOut = Math.min(2 * this.#leftOut + 1, MOST_LEFT_OUT)
    this.#toLeaveOut = this.#leftOut
  }
}
