/**
 * The segments of a journal, oldest first, and who needs them.
 *
 * Invariants:
 *  - A segment is needed until every checkpoint that has records in it is in the images, all before it are removed, and
 *    nobody reads a record of it or of one before it.
 *  - A segment counts from when its header is durable, and is not given up before a later one counts.
 */

import { assert } from '../../core/assert.ts'
import type { Recovered } from './recovery.ts'

interface Segment {
  readonly number: number
  bytes: number
  /** The last checkpoint that has records in it; undefined while that one is not committed. */
  neededBy: number | undefined
}

export class SegmentList {
  #segments: Segment[]
  /** The newest segment whose header is durable. */
  #begun: number
  /** By segment: how many read records from there on. */
  readonly #pins = new Map<number, number>()
  /** Whether one was not given up for that. */
  #isHeld = false

  constructor(recovered: Recovered['segments']) {
    this.#segments = recovered.map((segment) => ({ ...segment }))
    this.#begun = this.#segments.at(-1)?.number ?? 0
  }

  get bytes(): number {
    return this.#segments.reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /** Bytes of the one that is written to; undefined where there is none. */
  get lastBytes(): number | undefined {
    return this.#segments.at(-1)?.bytes
  }

  get nextNumber(): number {
    return this.#last + 1
  }

  /** Begins one, with a header of so many bytes. */
  add(number: number, bytes: number, neededBy: number): void {
    this.#segments.push({ number, bytes, neededBy })
  }

  /** The header is durable. */
  begun(number: number): void {
    this.#begun = number
  }

  /** Adds a record to the last one. `isData`: of an epoch that is not committed. @returns the segment, and where in it the record is */
  put(bytes: number, isData: boolean): { readonly segment: number; readonly at: number } {
    const segment = this.#segments.at(-1)
    assert(segment !== undefined, 'a journal is begun before it is written')
    const at = segment.bytes
    segment.bytes += bytes
    if (isData) segment.neededBy = undefined
    return { segment: segment.number, at }
  }

  /** The data that was not committed is of this checkpoint, or of none after it. */
  settle(checkpoint: number): void {
    for (const segment of this.#segments) segment.neededBy ??= checkpoint
  }

  /** Forgets those that were never begun. */
  dropUnbegun(): void {
    this.#segments = this.#segments.filter(({ number }) => number <= this.#begun)
  }

  /** Keeps a segment, and all behind it, until what is returned is called, which calls `unpinned` where that was in somebody's way. */
  pin(segment: number, unpinned: () => void): () => void {
    this.#pins.set(segment, (this.#pins.get(segment) ?? 0) + 1)
    return () => {
      const left = (this.#pins.get(segment) ?? 0) - 1
      if (left > 0) this.#pins.set(segment, left)
      else this.#pins.delete(segment)
      if (!this.#isHeld) return
      this.#isHeld = false
      unpinned()
    }
  }

  /** The oldest one, if nobody needs it: the newest one that counts says what is remembered. @param flushed is in every image */
  spent(flushed: number): number | undefined {
    const [oldest] = this.#segments
    if (oldest?.neededBy === undefined || oldest.number >= this.#begun) return undefined
    if (oldest.neededBy > flushed) return undefined
    for (const pinned of this.#pins.keys()) this.#isHeld ||= pinned <= oldest.number
    return this.#isHeld ? undefined : oldest.number
  }

  /** The oldest one is gone. */
  removed(): void {
    this.#segments.shift()
  }

  get #last(): number {
    return this.#segments.at(-1)?.number ?? this.#begun
  }
}
