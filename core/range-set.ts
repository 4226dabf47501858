/**
 * A set of integers (bytes, sectors, blocks) kept as its runs. Lookups are binary searches. A change costs one, and
 * moves the runs behind it: made for sets of up to some ten thousand runs.
 *
 * Invariants:
 *  - Runs are not empty, ascend, and neither overlap nor touch: a set has one representation.
 *  - `total` is exactly the sum of their lengths.
 */

import { assert } from './assert.ts'

export interface Range {
  readonly at: number
  readonly length: number
}

export class RangeSet implements Iterable<Range> {
  readonly #starts: number[] = []
  readonly #ends: number[] = []
  #total = 0

  /** The number of integers in the set. */
  get total(): number {
    return this.#total
  }

  /** The number of runs. */
  get size(): number {
    return this.#starts.length
  }

  get isEmpty(): boolean {
    return this.#starts.length === 0
  }

  add(at: number, length: number): void {
    const end = endOf(at, length)
    if (length === 0) return
    // Every run that overlaps or touches becomes part of the new one.
    const first = this.#firstEndingAtOrAfter(at)
    const last = this.#firstStartingAfter(end)
    const start = first < last ? Math.min(at, this.#start(first)) : at
    const until = first < last ? Math.max(end, this.#end(last - 1)) : end
    this.#replace(first, last, [start], [until])
  }

  remove(at: number, length: number): void {
    const end = endOf(at, length)
    if (length === 0) return
    const first = this.#firstEndingAtOrAfter(at + 1)
    const last = this.#firstStartingAfter(end - 1)
    if (first >= last) return
    const starts: number[] = []
    const ends: number[] = []
    if (this.#start(first) < at) {
      starts.push(this.#start(first))
      ends.push(at)
    }
    if (this.#end(last - 1) > end) {
      starts.push(end)
      ends.push(this.#end(last - 1))
    }
    this.#replace(first, last, starts, ends)
  }

  clear(): void {
    this.#starts.length = 0
    this.#ends.length = 0
    this.#total = 0
  }

  /** Whether all of the range is in the set. */
  covers(at: number, length: number): boolean {
    const end = endOf(at, length)
    if (length === 0) return true
    const index = this.#firstEndingAtOrAfter(end)
    return index < this.size && this.#start(index) <= at
  }

  /** Whether any of the range is in the set. */
  intersects(at: number, length: number): boolean {
    const end = endOf(at, length)
    const index = this.#firstEndingAtOrAfter(at + 1)
    return length > 0 && index < this.size && this.#start(index) < end
  }

  /** The parts of the range that are in the set, in order. The set must not change meanwhile. */
  *within(at: number, length: number): Generator<Range> {
    const end = endOf(at, length)
    for (let index = this.#firstEndingAtOrAfter(at + 1); index < this.size; index += 1) {
      const start = Math.max(at, this.#start(index))
      if (start >= end) return
      yield { at: start, length: Math.min(end, this.#end(index)) - start }
    }
  }

  /** The first run at or after `from`, cut to begin there. */
  next(from: number): Range | undefined {
    const index = this.#firstEndingAtOrAfter(from + 1)
    if (index === this.size) return undefined
    const at = Math.max(from, this.#start(index))
    return { at, length: this.#end(index) - at }
  }

  /** The runs, in order. The set must not change meanwhile. */
  *[Symbol.iterator](): Generator<Range> {
    for (let index = 0; index < this.size; index += 1) {
      const at = this.#start(index)
      yield { at, length: this.#end(index) - at }
    }
  }

  #replace(first: number, last: number, starts: number[], ends: number[]): void {
    for (let index = first; index < last; index += 1)
      this.#total -= this.#end(index) - this.#start(index)
    starts.forEach((start, index) => (this.#total += (ends[index] ?? start) - start))
    if (last - first === 1 && starts.length === 1) {
      this.#starts[first] = starts[0] ?? 0
      this.#ends[first] = ends[0] ?? 0
      return
    }
    this.#starts.splice(first, last - first, ...starts)
    this.#ends.splice(first, last - first, ...ends)
  }

  #firstEndingAtOrAfter(at: number): number {
    return firstIndex(this.#ends, (end) => end >= at)
  }

  #firstStartingAfter(at: number): number {
    return firstIndex(this.#starts, (start) => start > at)
  }

  #start(index: number): number {
    const start = this.#starts[index]
    assert(start !== undefined, 'a run has a start')
    return start
  }

  #end(index: number): number {
    const end = this.#ends[index]
    assert(end !== undefined, 'a run has an end')
    return end
  }
}

/** The first index whose value `isReached`, which is false up to some value and true from then on. */
function firstIndex(values: readonly number[], isReached: (value: number) => boolean): number {
  let low = 0
  let high = values.length
  while (low < high) {
    const middle = (low + high) >>> 1
    const value = values[middle]
    if (value !== undefined && isReached(value)) high = middle
    else low = middle + 1
  }
  return low
}

function endOf(at: number, length: number): number {
  const end = at + length
  assert(at >= 0 && length >= 0 && Number.isSafeInteger(end), 'a range is of safe integers')
  return end
}
