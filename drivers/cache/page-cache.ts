/**
 * Pages of a disk in memory, the one least recently used going first, and the pages that are being fetched. Pure.
 *
 * Invariants:
 *  - Pages and fetches together never exceed the limit.
 *  - A page is neither held nor being fetched for others while something changes it: what is fetched meanwhile may be
 *    from before or after the change.
 */

/** A page on its way from the disk. */
export interface Fetch {
  readonly page: number
  readonly bytes: Buffer
  /** No change has touched the page since the fetch began. */
  valid: boolean
  /** Whether the bytes are there; never rejected. Set by who fetches, for who wants the same page. */
  arrived: Promise<boolean> | undefined
}

/** Pages that something changes now. */
export interface Change {
  readonly first: number
  readonly last: number
}

export class PageCache {
  /** Pages held and fetched at a time. */
  readonly limit: number
  /** In the order of their last use. */
  readonly #pages = new Map<number, Buffer>()
  /** Valid ones, by page. */
  readonly #fetches = new Map<number, Fetch>()
  #fetching = 0
  readonly #changes: Change[] = []

  constructor(limit: number) {
    this.limit = limit
  }

  /** Pages held and fetched now. */
  get size(): number {
    return this.#pages.size + this.#fetching
  }

  get(page: number): Buffer | undefined {
    const bytes = this.#pages.get(page)
    if (bytes === undefined) return undefined
    this.#pages.delete(page)
    this.#pages.set(page, bytes)
    return bytes
  }

  /** The fetch that whoever wants the page now may wait for. */
  fetchOf(page: number): Fetch | undefined {
    return this.#fetches.get(page)
  }

  /**
   * Makes room and notes that the page is being fetched.
   * @returns undefined when the page is not to be kept: it is being changed, or fetches take all the room there is
   */
  begin(page: number, length: number): Fetch | undefined {
    if (this.#fetching === this.limit) return undefined
    for (const { first, last } of this.#changes) if (first <= page && page <= last) return undefined
    if (this.size === this.limit) {
      const [oldest] = this.#pages.keys()
      if (oldest !== undefined) this.#pages.delete(oldest)
    }
    const bytes = Buffer.allocUnsafeSlow(length)
    const fetch: Fetch = { page, bytes, valid: true, arrived: undefined }
    this.#fetches.set(page, fetch)
    this.#fetching += 1
    return fetch
  }

  /** The fetch is over; its page is kept if it arrived and nothing has changed it meanwhile. */
  end(fetch: Fetch, arrived: boolean): void {
    this.#fetching -= 1
    if (!fetch.valid) return
    this.#fetches.delete(fetch.page)
    if (arrived) this.#pages.set(fetch.page, fetch.bytes)
  }

  /** The pages from `first` to `last`, both included, begin to change. */
  beginChange(first: number, last: number): Change {
    const change = { first, last }
    this.#changes.push(change)
    this.forget(change)
    return change
  }

  endChange(change: Change): void {
    const last = this.#changes.pop()
    if (last !== undefined && last !== change) this.#changes[this.#changes.indexOf(change)] = last
  }

  /** Forgets pages, also those that are being fetched. */
  forget({ first, last }: Change): void {
    forEachWithin(this.#pages, first, last, (page) => this.#pages.delete(page))
    forEachWithin(this.#fetches, first, last, (page, fetch) => {
      fetch.valid = false
      this.#fetches.delete(page)
    })
  }
}

/** Looks at the keys of the range or at those of the map, whichever are fewer. */
function forEachWithin<T>(
  map: ReadonlyMap<number, T>,
  first: number,
  last: number,
  act: (key: number, value: T) => void,
): void {
  if (last - first < map.size) {
    for (let key = first; key <= last; key += 1) {
      const value = map.get(key)
      if (value !== undefined) act(key, value)
    }
  } else {
    for (const [key, value] of map) if (key >= first && key <= last) act(key, value)
  }
}
