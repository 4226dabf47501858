/**
 * The recycled memory that epochs are made of: slabs of 256 KiB in shared memory, so that an I/O thread can use a
 * page in place, handed out and taken back whole.
 *
 * Invariants:
 *  - `bytesInUse` is exactly the slabs handed out and not yet given back. What callers choose to hold never takes it
 *    over `limit`; only what cannot be refused (staging of a flush, splitting a zero run to forget a part of it) may.
 *  - A slab has one holder at a time and is given back once.
 *  - Memory that was touched once is reused before new memory is taken: the first touch is the slow part.
 *    `bytesAllocated` therefore never exceeds the highest `bytesInUse` so far.
 */

import { assert } from '../core/assert.ts'
import { KiB, SECTOR } from '../core/units.ts'

export const PAGE = 4 * KiB
export const SLAB = 256 * KiB
export const PAGES_PER_SLAB = SLAB / PAGE

/** After so many epochs were given back, half of the memory that lay unused all the while is dropped. */
const RETURNS_PER_REVIEW = 64

export class Slab {
  readonly bytes: Buffer
  /** The same memory as 32-bit words. */
  readonly words: Int32Array
  /** In use by somebody; only PageMemory changes it. */
  held = false

  constructor() {
    const memory = new SharedArrayBuffer(SLAB)
    this.bytes = Buffer.from(memory)
    this.words = new Int32Array(memory)
  }
}

export class PageMemory {
  /** Bytes. */
  readonly limit: number
  #free: Slab[] = []
  #slabsInUse = 0
  #returns = 0
  /** The fewest free slabs since the last review: so many were not needed all the while. */
  #leastFree = 0
  #waiting: (() => void)[] = []

  /** @param limit bytes that may be in use at a time */
  constructor(limit: number) {
    this.limit = limit
  }

  get bytesInUse(): number {
    return this.#slabsInUse * SLAB
  }

  /** What is in use and what is kept for the next epoch. */
  get bytesAllocated(): number {
    return (this.#slabsInUse + this.#free.length) * SLAB
  }

  /** Slabs that may still be taken. */
  get slabsLeft(): number {
    return this.#slabsBelow(this.limit)
  }

  /**
   * Whether any epoch can take a write of `bytes` now, and leaves what is in use below `limit`. Errs on the side of no by less
   * than two slabs.
   */
  canHold(bytes: number, limit = this.limit): boolean {
    return slotsFor(Math.ceil(bytes / PAGE) + 1) <= this.#slabsBelow(limit) * PAGES_PER_SLAB
  }

  /** Whether any spilled epoch can take a write of `bytes`. Errs as canHold(). */
  canIndex(bytes: number): boolean {
    return indexSlotsFor(Math.ceil(bytes / SECTOR)) <= this.slabsLeft * PAGES_PER_SLAB
  }

  #slabsBelow(limit: number): number {
    return Math.max(0, Math.floor(limit / SLAB) - this.#slabsInUse)
  }

  /** Calls `wake` once, after memory was given back. Ask canHold again then: others may have been faster. */
  whenReleased(wake: () => void): void {
    this.#waiting.push(wake)
  }

  /** A slab with unspecified content, or undefined at the limit. */
  take(): Slab | undefined {
    return this.slabsLeft === 0 ? undefined : this.takeBeyondLimit()
  }

  /** For the little that cannot be refused. */
  takeBeyondLimit(): Slab {
    const slab = this.#free.pop() ?? new Slab()
    assert(!slab.held, 'a free slab is held by nobody')
    slab.held = true
    this.#slabsInUse += 1
    if (this.#free.length < this.#leastFree) this.#leastFree = this.#free.length
    return slab
  }

  /** Takes one slab back. */
  give(slab: Slab): void {
    this.#takeBack(slab)
    this.#wake()
  }

  /** Takes all the slabs of an epoch back, which ends a period for the question of how much memory is worth keeping. */
  giveAll(slabs: readonly Slab[]): void {
    for (const slab of slabs) this.#takeBack(slab)
    this.#returns += 1
    if (this.#returns === RETURNS_PER_REVIEW) this.#review()
    if (slabs.length > 0) this.#wake()
  }

  /** Drops all memory that is not in use, for one who knows that the load has ended. */
  trim(): void {
    this.#free.length = 0
    this.#leastFree = 0
  }

  #takeBack(slab: Slab): void {
    assert(slab.held, 'a slab is given back once, by its holder')
    slab.held = false
    this.#free.push(slab)
    this.#slabsInUse -= 1
  }

  #wake(): void {
    if (this.#waiting.length === 0) return
    const waiting = this.#waiting
    this.#waiting = []
    for (const wake of waiting) wake()
  }

  #review(): void {
    this.#free.length -= Math.ceil(this.#leastFree / 2)
    this.#leastFree = this.#free.length
    this.#returns = 0
  }
}

/** Fan-out of an epoch's index (page-tree.ts), and the bytes of one of its nodes. */
export const FANOUT = 32
export const NODE = FANOUT * 4
/** Levels of the index of the largest disk whose offsets are safe integers (2^53 bytes, 2^41 pages). */
export const MOST_LEVELS = 9

/**
 * The most slots (pages of memory) that a change touching `pages` neighbouring pages can take: their data, the nodes
 * above them (a 31st and the ends), and two more paths for the edges of a zero run.
 */
export function slotsFor(pages: number): number {
  return pages + slotsOfNodes(pages)
}

/** The same for a change of a spilled epoch that touches `sectors` neighbouring sectors: a page for what it tells of records. */
export function indexSlotsFor(sectors: number): number {
  return 1 + slotsOfNodes(sectors)
}

function slotsOfNodes(entries: number): number {
  const nodes = Math.ceil(entries / (FANOUT - 1)) + 4 * MOST_LEVELS
  return Math.ceil((nodes * NODE) / PAGE)
}
