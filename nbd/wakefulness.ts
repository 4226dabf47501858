/**
 * Keeps the event loop awake for a moment after the only request of a client was answered: a client that waits for each
 * answer sends its next request a few microseconds later. The loop goes on to serve everything else meanwhile.
 */

import { AdaptivePolling } from '../core/adaptive-polling.ts'

/** Milliseconds to stay awake: what a client that has to be woken takes from an answer to its next request, twice. */
const AWAKE_MS = 0.1

export class Wakefulness {
  readonly #polling = new AdaptivePolling()
  #awake = false
  #until = 0

  /** A client that has nothing else under way was answered. */
  answered(): void {
    if (this.#awake) {
      // It was the request that was looked for.
      this.#polling.paidOff()
    } else if (this.#polling.tries()) {
      this.#awake = true
      setImmediate(this.#look)
    } else return
    this.#until = performance.now() + AWAKE_MS
  }

  /** Runs once in each round of the loop, which does not sleep while it is asked to come here. */
  readonly #look = (): void => {
    if (performance.now() < this.#until) {
      setImmediate(this.#look)
      return
    }
    this.#awake = false
    this.#polling.failed()
  }
}
