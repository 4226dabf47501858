/** Which bytes of a range have been given, so that none is given twice and none is missing. Pure. */

export class Coverage {
  readonly #at: number
  readonly #length: number
  /** Given and apart from each other, in order: [from, to). In most replies there is one, which grows. */
  readonly #given: { from: number; to: number }[] = []

  constructor(at: number, length: number) {
    this.#at = at
    this.#length = length
  }

  get complete(): boolean {
    const [only, second] = this.#given
    if (this.#length === 0) return true
    return second === undefined && only !== undefined && only.to - only.from === this.#length
  }

  /** Notes [at, at + length). @returns false, and notes nothing, when it is not inside the range or was given before */
  add(at: number, length: number): boolean {
    const to = at + length
    if (length <= 0 || at < this.#at || to > this.#at + this.#length) return false
    let index = this.#given.length
    while (index > 0 && (this.#given[index - 1]?.from ?? 0) >= to) index -= 1
    const before = this.#given[index - 1]
    if (before !== undefined && before.to > at) return false
    const after = this.#given[index]
    const joinsAfter = after?.from === to
    if (before?.to === at) {
      before.to = joinsAfter ? after.to : to
      if (joinsAfter) this.#given.splice(index, 1)
    } else if (joinsAfter) after.from = at
    else this.#given.splice(index, 0, { from: at, to })
    return true
  }
}
