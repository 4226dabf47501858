/** Holds work that reads and sends disks to a rate. */

import type { GroupEnvironment } from './environment.ts'

/** The longest time that a timer of Node can wait. */
const LONGEST_MS = 2 ** 31 - 1

export class Pace {
  readonly #environment: Pick<GroupEnvironment, 'timers' | 'nowMs'>
  #rate: number
  /** Bytes since the rate was set. */
  #spent = 0
  #startedMs: number
  readonly #waiting = new Set<() => void>()

  /** @param rate bytes a second; 0: as many as it can */
  constructor(environment: Pick<GroupEnvironment, 'timers' | 'nowMs'>, rate: number) {
    this.#environment = environment
    this.#rate = rate
    this.#startedMs = environment.nowMs()
  }

  get rate(): number {
    return this.#rate
  }

  /** Counts anew from now on; what waits for the old rate goes on. */
  setRate(rate: number): void {
    this.#rate = rate
    this.#startedMs = this.#environment.nowMs()
    this.#spent = 0
    for (const wake of [...this.#waiting]) wake()
  }

  /** Counts bytes that were worked through, and resolves when the rate allows more. */
  async spend(bytes: number): Promise<void> {
    this.#spent += bytes
    if (this.#rate === 0) return
    const { nowMs, timers } = this.#environment
    const waitMs = this.#startedMs + (this.#spent / this.#rate) * 1000 - nowMs()
    if (waitMs < 1) return
    await new Promise<void>((resolve) => {
      const wake = (): void => {
        this.#waiting.delete(wake)
        cancel()
        resolve()
      }
      this.#waiting.add(wake)
      const cancel = timers.after(Math.min(waitMs, LONGEST_MS), wake)
    })
  }
}
