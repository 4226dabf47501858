/**
 * The pages of memory of one epoch, numbered: slots. They come from slabs of the shared page memory, which are all
 * given back together, however many slots are in use.
 *
 * Invariants:
 *  - A slot number stays with its memory until release(). Slots below FIRST_RESERVED only.
 *  - A slot that was freed is used again before a new one. The list of free slots lives in their own first words.
 */

import { assert } from '../core/assert.ts'
import { Fault } from '../core/fault.ts'
import { formatSize } from '../core/units.ts'
import { PAGES_PER_SLAB, type PageMemory, type Slab } from './page-memory.ts'

/** Slots are numbers of 24 bits (64 GiB in an epoch); the highest two are left to mean something else. */
export const FIRST_RESERVED = 0xfffffe

const SLAB_SHIFT = 6
const WORDS_PER_PAGE = 1024
assert(1 << SLAB_SHIFT === PAGES_PER_SLAB, 'a slot number is a slab and a page in it')

export class SlotArena {
  readonly #memory: PageMemory
  /** Read by the tree and the epoch on every access; changed only here. */
  slabs: Slab[] = []
  /** Slots below this have been handed out before. */
  #fresh = 0
  #freeHead = -1
  #freeCount = 0

  constructor(memory: PageMemory) {
    this.#memory = memory
  }

  /** Slots that allocate() can give without going over the memory limit. */
  get spare(): number {
    const mine = this.slabs.length * PAGES_PER_SLAB - this.#fresh + this.#freeCount
    const most = FIRST_RESERVED - this.#fresh + this.#freeCount
    return Math.min(mine + this.#memory.slabsLeft * PAGES_PER_SLAB, most)
  }

  /** The slot that allocate() gives next. */
  get upcoming(): number {
    return this.#freeHead === -1 ? this.#fresh : this.#freeHead
  }

  /** The slab that `slot` lies in. */
  bytesOf(slot: number): Buffer {
    return this.#slab(slot).bytes
  }

  /** @throws Fault NO_MEMORY when `slots` more are not to be had */
  reserve(slots: number): void {
    if (slots <= this.spare) return
    throw new Fault('NO_MEMORY', 'the memory for replicated writes is used up', {
      where: `${formatSize(this.#memory.bytesInUse)} of ${formatSize(this.#memory.limit)} in use`,
      remedy: 'take a checkpoint, or raise the memory limit',
    })
  }

  /** A slot with unspecified content. What must not be refused was either reserved or may go over the limit. */
  allocate(): number {
    const free = this.#freeHead
    if (free !== -1) {
      this.#freeHead = this.#slab(free).words[wordOf(free)] ?? -1
      this.#freeCount -= 1
      return free
    }
    const slot = this.#fresh
    assert(slot < FIRST_RESERVED, 'an epoch has fewer than 2^24 slots')
    if (slot === this.slabs.length * PAGES_PER_SLAB) this.slabs.push(this.#memory.takeBeyondLimit())
    this.#fresh += 1
    return slot
  }

  free(slot: number): void {
    this.#slab(slot).words[wordOf(slot)] = this.#freeHead
    this.#freeHead = slot
    this.#freeCount += 1
  }

  /** Gives every slab back. The arena is as new. */
  release(): void {
    const slabs = this.slabs
    this.slabs = []
    this.#fresh = 0
    this.#freeHead = -1
    this.#freeCount = 0
    this.#memory.giveAll(slabs)
  }

  #slab(slot: number): Slab {
    const slab = this.slabs[slot >>> SLAB_SHIFT]
    assert(slab !== undefined, 'a slot lies in a slab')
    return slab
  }
}

function wordOf(slot: number): number {
  return (slot & (PAGES_PER_SLAB - 1)) * WORDS_PER_PAGE
}
