/** Looking for what is about to happen on another thread, for a moment, in place of sleep. Used on both sides of a ring. */

import { AdaptivePolling } from '../../core/adaptive-polling.ts'

/** Milliseconds: what waking a thread, and a small request in the page cache or at a client, take; twice. */
const LOOKING_MS = 0.1

export class LookOut {
  readonly #polling = new AdaptivePolling()

  /** Whether looking is likely to pay now. Follow with sees() where it says so. */
  tries(): boolean {
    return this.#polling.tries()
  }

  /** Whether it happens within the moment. */
  sees(hasHappened: () => boolean): boolean {
    const end = performance.now() + LOOKING_MS
    while (!hasHappened()) {
      if (performance.now() < end) continue
      this.#polling.failed()
      return false
    }
    this.#polling.paidOff()
    return true
  }
}
