/** One limit of time for several steps. What is late is not stopped, only not waited for any more. */

import type { Timers } from './clock.ts'
import type { Fault } from './fault.ts'

export class Deadline {
  #passed = false
  /** Each gives up one wait. */
  readonly #waits = new Set<() => void>()
  readonly #cancel: () => void

  /** @param ms milliseconds from now */
  constructor(timers: Timers, ms: number) {
    this.#cancel = timers.after(ms, () => {
      this.#passed = true
      for (const giveUp of [...this.#waits]) giveUp()
    })
  }

  /** As `work`; but rejects with `late()` where it has not settled when the time is over. */
  within<T>(work: Promise<T>, late: () => Fault): Promise<T> {
    return new Promise((resolve, reject) => {
      const giveUp = (): void => reject(late())
      if (this.#passed) giveUp()
      else this.#waits.add(giveUp)
      void work.then(resolve, reject).finally(() => this.#waits.delete(giveUp))
    })
  }

  /** The time does not run any more. */
  end(): void {
    this.#cancel()
  }
}
