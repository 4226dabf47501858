/**
 * Requests that use host clusters without a lock: a cluster that was freed is given away again only when all requests
 * that may have been on their way to it have ended.
 */

interface Generation {
  count: number
  drained: (() => void) | undefined
}

export class InFlight {
  #current: Generation = { count: 0, drained: undefined }
  #earlier: Promise<void> = Promise.resolve()

  /** Counts `request` from now until it ends. */
  track<T>(request: Promise<T>): Promise<T> {
    const generation = this.#current
    generation.count += 1
    return request.finally(() => {
      generation.count -= 1
      if (generation.count === 0) generation.drained?.()
    })
  }

  /** Resolves when every request that is counted now has ended. */
  quiet(): Promise<void> {
    const generation = this.#current
    this.#current = { count: 0, drained: undefined }
    if (generation.count > 0) {
      const drained = new Promise<void>((resolve) => (generation.drained = resolve))
      this.#earlier = Promise.all([this.#earlier, drained]).then(() => undefined)
    }
    return this.#earlier
  }
}
