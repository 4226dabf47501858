/** When a secondary tells that its memory fills: once for each step since the last checkpoint. Pure. */

/** Shares of the capacity at which the primary is told to checkpoint soon. */
const STEPS = [0.5, 0.75, 0.9] as const

export class Pressure {
  readonly #capacity: number
  #reached = 0
  #spilling = false

  /** @param capacity bytes */
  constructor(capacity: number) {
    this.#capacity = capacity
  }

  /** A checkpoint was taken, or the epoch was given up. */
  relieve(): void {
    this.#reached = 0
    this.#spilling = false
  }

  /** @returns whether a step was reached, or data is being spilled, which was not told yet */
  rises(bytes: number, spilledBytes: number): boolean {
    const reached = STEPS.filter((share) => bytes >= share * this.#capacity).length
    const isNews = reached > this.#reached || (spilledBytes > 0 && !this.#spilling)
    this.#reached = Math.max(this.#reached, reached)
    this.#spilling ||= spilledBytes > 0
    return isNews
  }
}
