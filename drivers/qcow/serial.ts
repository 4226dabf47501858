/** Work that is done one piece after the other, in the order in which it was asked for. */

export class Serial {
  #last: Promise<unknown> = Promise.resolve()

  run<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work)
    // The next piece begins whether this one failed or not; its own caller is told.
    this.#last = result.catch(() => undefined)
    return result
  }
}
