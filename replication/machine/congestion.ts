/**
 * Tells a secondary that is slow from one that is stuck. Slow ones slow their primary down, for as long as it takes; a
 * stuck one must not hold a guest's writes for ever. Pure; time is an input.
 *
 * Invariant: it is stuck only while nothing at all has been taken by images and journal for the whole limit, and until
 * something is.
 */

export interface CongestionSign {
  readonly nowMs: number
  /** Whether the primary's data is waiting. */
  readonly held: boolean
  /** Grows whenever an image or the journal has taken something. */
  readonly progress: number
}

export class Congestion {
  readonly #limitMs: number
  #progress = 0
  /** Since when data waits without progress; undefined while none waits. */
  #sinceMs: number | undefined
  #stuck = false

  /** @param limitMs how long data may wait without any progress */
  constructor(limitMs: number) {
    this.#limitMs = limitMs
  }

  get stuck(): boolean {
    return this.#stuck
  }

  /** @returns whether it is stuck from now on, and was not before */
  look({ nowMs, held, progress }: CongestionSign): boolean {
    if (progress !== this.#progress) {
      this.#progress = progress
      this.#sinceMs = undefined
      this.#stuck = false
    }
    if (this.#stuck) return false
    this.#sinceMs = held ? (this.#sinceMs ?? nowMs) : undefined
    this.#stuck = this.#sinceMs !== undefined && nowMs - this.#sinceMs >= this.#limitMs
    return this.#stuck
  }
}
