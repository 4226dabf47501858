/**
 * The sectors that were written to one disk between two checkpoints: data in pages of recycled memory, and zeroes,
 * which take no memory for their content however long the run.
 *
 * An index (page-tree.ts) has an entry for each page:
 *     bits 0-7    which of the page's eight sectors are held; none: the entry is 0
 *     bits 8-31   the slot with their data, or PUNCHED or KEPT: they are zeroes whose space may be given up, or not
 * A page that holds both has its zeroes as data. The entry of a page of zeroes, all sectors held, is negative, so that
 * the index keeps a run of such pages as one.
 *
 * Invariants:
 *  - `bytes` and `zeroBytes` are exactly the sectors held as data and as zeroes.
 *  - A call that throws Fault NO_MEMORY has changed nothing. clear() never throws it.
 *  - An epoch that holds nothing holds no memory.
 *  - All offsets and lengths are multiples of a sector; a range may also end at the end of an odd-sized disk, whose
 *    last sector is then held whole.
 */

import { assert } from '../core/assert.ts'
import { SECTOR } from '../core/units.ts'
import { PAGE, PAGES_PER_SLAB, slotsFor, type PageMemory } from './page-memory.ts'
import { PageTree } from './page-tree.ts'
import { FIRST_RESERVED, SlotArena } from './slot-arena.ts'

const SECTORS_PER_PAGE = PAGE / SECTOR
const ALL = (1 << SECTORS_PER_PAGE) - 1
const KEPT = FIRST_RESERVED
const PUNCHED = FIRST_RESERVED + 1
const SECTORS_OF_MASK = Uint8Array.from({ length: ALL + 1 }, (_, mask) => {
  let count = 0
  for (let bits = mask; bits !== 0; bits >>>= 1) count += bits & 1
  return count
})

/** What a run of held sectors is: data; zeroes whose space may be given up; zeroes that keep it. */
export type HeldKind = 'data' | 'punched' | 'kept'

export interface HeldRun {
  readonly at: number
  readonly length: number
  readonly kind: HeldKind
}

export class Epoch {
  #size: number
  readonly #arena: SlotArena
  readonly #tree: PageTree
  #bytes = 0
  #zeroBytes = 0
  #released = false

  /** @param diskSize bytes; nothing beyond is ever held */
  constructor(memory: PageMemory, diskSize: number) {
    this.#size = diskSize
    this.#arena = new SlotArena(memory)
    this.#tree = new PageTree(this.#arena, Math.ceil(diskSize / PAGE), (entry, pages) => {
      this.#account(entry, -pages)
      if (isData(entry)) this.#arena.free(entry >>> 8)
    })
  }

  /** The disk has become larger. Not refused at the memory limit: it takes a few nodes. */
  grow(diskSize: number): void {
    this.#tree.grow(Math.ceil(diskSize / PAGE))
    this.#size = diskSize
  }

  /** Bytes held as data: whole sectors. */
  get bytes(): number {
    return this.#bytes
  }

  /** Bytes held as zeroes, which take no memory for their content. */
  get zeroBytes(): number {
    return this.#zeroBytes
  }

  get isEmpty(): boolean {
    return this.#bytes === 0 && this.#zeroBytes === 0
  }

  /** @throws Fault NO_MEMORY at the memory limit, leaving the epoch as it was */
  write(from: Buffer, at: number): void {
    const length = from.length
    this.#check(at, length)
    if (length === 0) return
    this.#reserve(at, at + length)
    let done = 0
    while (done < length) {
      const offset = (at + done) % PAGE
      const part = Math.min(PAGE - offset, length - done)
      const slot = this.#slotFor(Math.floor((at + done) / PAGE), maskOf(offset, part))
      // Neighbouring slots in one slab are filled by one copy: what is written in order mostly lies in order.
      const start = done
      let last = slot
      done += part
      while (done < length && isNextInSlab(last)) {
        const rest = Math.min(PAGE, length - done)
        const page = Math.floor((at + done) / PAGE)
        if (!this.#wouldFollow(page, last)) break
        last = this.#slotFor(page, maskOf(0, rest))
        done += rest
      }
      this.#fillSlots(slot, offset, from, start, done)
    }
  }

  /**
   * The range reads as zeroes. `punch`: its space below may be given up.
   * @throws Fault NO_MEMORY at the memory limit, leaving the epoch as it was
   */
  zero(at: number, length: number, punch: boolean): void {
    this.#check(at, length)
    if (length === 0) return
    // Two split pages, and the nodes along the edges of the run.
    this.#arena.reserve(slotsFor(2))
    this.#tree.plant()
    const kind = punch ? PUNCHED : KEPT
    const end = at + length
    this.#forPages(
      at,
      end,
      (page, mask) => this.#zeroPart(page, mask, kind),
      (first, last) => {
        this.#tree.fill(first, last, entryOf(kind, ALL))
        this.#zeroBytes += (last - first) * PAGE
      },
    )
  }

  /** Forgets the range: reads of it go to what lies below. */
  clear(at: number, length: number): void {
    this.#check(at, length)
    if (length === 0 || this.isEmpty) return
    this.#forPages(
      at,
      at + length,
      (page, mask) => this.#clearPart(page, mask),
      (first, last) => this.#tree.fill(first, last, 0),
    )
    if (this.#bytes + this.#zeroBytes === 0) this.#giveBack()
  }

  /** Copies every held sector of the range into `into`, and leaves the others. */
  overlay(into: Buffer, at: number): void {
    this.#check(at, into.length)
    const end = at + into.length
    for (let run = this.next(at, end); run !== undefined; run = this.next(run.at + run.length, end))
      if (run.kind === 'data') this.#copyOut(into, run.at - at, run.at, run.length)
      else into.fill(0, run.at - at, run.at - at + run.length)
  }

  /** Whether all of the range is held. */
  covers(at: number, length: number): boolean {
    return length === 0 || this.sameUntil(at, at + length) >= at + length
  }

  /**
   * Where the run from `at` of sectors that are all held, or all not held, ends: `end` at most. Negated when they
   * are not held.
   */
  sameUntil(at: number, end: number): number {
    this.#check(at, end - at)
    if (this.isEmpty) return -end
    const held = this.#isHeld(at)
    let position = at
    while (position < end) {
      const page = Math.floor(position / PAGE)
      const mask = this.#tree.get(page) & ALL
      if (mask === (held ? ALL : 0)) {
        position = (page + this.#tree.span) * PAGE
        continue
      }
      let sector = (position % PAGE) / SECTOR
      while (sector < SECTORS_PER_PAGE && ((mask >>> sector) & 1) === (held ? 1 : 0)) sector += 1
      position = page * PAGE + sector * SECTOR
      if (sector < SECTORS_PER_PAGE) break
    }
    const until = Math.min(position, end)
    return held ? until : -until
  }

  /** The first run of held sectors of one kind in [from, end), no longer than `mostData` or `mostZeroes` bytes. */
  next(
    from: number,
    end: number,
    mostData = Number.MAX_SAFE_INTEGER,
    mostZeroes = Number.MAX_SAFE_INTEGER,
  ): HeldRun | undefined {
    const limit = Math.min(end, this.#size)
    if (from >= limit || this.isEmpty) return undefined
    const at = this.#isHeld(from) ? from : -this.sameUntil(from, limit)
    if (at >= limit) return undefined
    const kind = kindOf(this.#tree.get(Math.floor(at / PAGE)))
    const longest = kind === 'data' ? mostData : mostZeroes
    const most = longest < limit - at ? at + longest : limit
    let until = at
    while (until < most) {
      const page = Math.floor(until / PAGE)
      const entry = this.#tree.get(page)
      const pages = this.#tree.span
      if (entry === 0 || kindOf(entry) !== kind) break
      if ((entry & ALL) === ALL) {
        until = (page + pages) * PAGE
        continue
      }
      let sector = (until % PAGE) / SECTOR
      while (sector < SECTORS_PER_PAGE && ((entry >>> sector) & 1) === 1) sector += 1
      until = page * PAGE + sector * SECTOR
      if (sector < SECTORS_PER_PAGE) break
    }
    return { at, length: Math.min(until, most) - at, kind }
  }

  /** Gives the memory back, in a time that grows with slabs only. The epoch must not be used again. */
  release(): void {
    assert(!this.#released, 'an epoch is released once')
    this.#released = true
    this.#giveBack()
  }

  #giveBack(): void {
    this.#bytes = 0
    this.#zeroBytes = 0
    this.#tree.reset()
    this.#arena.release()
  }

  /** Makes sure that a write of [at, end) finds its memory. */
  #reserve(at: number, end: number): void {
    const first = Math.floor(at / PAGE)
    const last = Math.ceil(end / PAGE)
    const most = slotsFor(last - first)
    if (most > this.#arena.spare) {
      let missing = 0
      for (let page = first; page < last; page += 1) if (!isData(this.#tree.get(page))) missing += 1
      // A page with a slot has its nodes, too.
      if (missing > 0) this.#arena.reserve(most - (last - first) + missing)
    }
    this.#tree.plant()
  }

  /** The slot of a page that the sectors of `mask` are going to be written to; they are held from now on. */
  #slotFor(page: number, mask: number): number {
    const entry = this.#tree.get(page)
    const had = entry & ALL
    if (isData(entry)) {
      const slot = entry >>> 8
      if ((had | mask) !== had) {
        this.#tree.set(page, entryOf(slot, had | mask))
        this.#bytes += sectorsOf(mask & ~had) * SECTOR
      }
      return slot
    }
    const slot = this.#arena.allocate()
    this.#account(entry, -1)
    if ((had & ~mask) !== 0) this.#zeroSectors(slot, had & ~mask)
    this.#tree.set(page, entryOf(slot, had | mask))
    this.#bytes += sectorsOf(had | mask) * SECTOR
    return slot
  }

  /** Whether `page` has, or would now be given, the slot after `slot`. */
  #wouldFollow(page: number, slot: number): boolean {
    const entry = this.#tree.get(page)
    return (isData(entry) ? entry >>> 8 : this.#arena.upcoming) === slot + 1
  }

  #zeroPart(page: number, mask: number, kind: number): void {
    const entry = this.#tree.get(page)
    const had = entry & ALL
    const others = had & ~mask
    if (isData(entry) && others !== 0) {
      this.#zeroSectors(entry >>> 8, mask)
      this.#tree.set(page, entryOf(entry >>> 8, had | mask))
      this.#bytes += sectorsOf(mask & ~had) * SECTOR
      return
    }
    if (isData(entry)) this.#arena.free(entry >>> 8)
    this.#account(entry, -1)
    // A page has one kind of zeroes; keeping space that could be given up is the mistake that does no harm.
    const merged = entryOf(others === 0 || entry >>> 8 === kind ? kind : KEPT, had | mask)
    this.#tree.set(page, merged)
    this.#account(merged, 1)
  }

  #clearPart(page: number, mask: number): void {
    const entry = this.#tree.get(page)
    if ((entry & mask) === 0) return
    const rest = entry & ALL & ~mask
    const left = rest === 0 ? 0 : entryOf(entry >>> 8, rest)
    this.#account(entry, -1)
    this.#account(left, 1)
    if (left === 0 && isData(entry)) this.#arena.free(entry >>> 8)
    this.#tree.set(page, left)
  }

  #isHeld(at: number): boolean {
    const mask = this.#tree.get(Math.floor(at / PAGE)) & ALL
    return ((mask >>> ((at % PAGE) / SECTOR)) & 1) === 1
  }

  /** Adds the sectors of `pages` times `entry`. */
  #account(entry: number, pages: number): void {
    const bytes = sectorsOf(entry & ALL) * SECTOR * pages
    if (isData(entry)) this.#bytes += bytes
    else this.#zeroBytes += bytes
  }

  /** Copies [start, end) of `from` to neighbouring slots from `slot` on, beginning at `offset` in the first. */
  #fillSlots(slot: number, offset: number, from: Buffer, start: number, end: number): void {
    const target = this.#arena.bytesOf(slot)
    const position = placeOf(slot) + offset
    if (start === 0 && end === from.length) target.set(from, position)
    else from.copy(target, position, start, end)
  }

  /** Copies the data of [at, at + length), all held as data, to `into` from `target` on. */
  #copyOut(into: Buffer, target: number, at: number, length: number): void {
    let done = 0
    while (done < length) {
      const offset = (at + done) % PAGE
      const first = this.#tree.get(Math.floor((at + done) / PAGE)) >>> 8
      const start = done
      let slot = first
      done += PAGE - offset
      while (done < length && isNextInSlab(slot)) {
        if (this.#tree.get(Math.floor((at + done) / PAGE)) >>> 8 !== slot + 1) break
        slot += 1
        done += PAGE
      }
      if (done > length) done = length
      const place = placeOf(first) + offset
      this.#arena.bytesOf(first).copy(into, target + start, place, place + done - start)
    }
  }

  #zeroSectors(slot: number, mask: number): void {
    const bytes = this.#arena.bytesOf(slot)
    const place = placeOf(slot)
    for (let sector = 0; sector < SECTORS_PER_PAGE; sector += 1)
      if (((mask >>> sector) & 1) === 1)
        bytes.fill(0, place + sector * SECTOR, place + (sector + 1) * SECTOR)
  }

  /** Cuts [at, end) into pages that it covers in part, and the run of pages that it covers whole. */
  #forPages(
    at: number,
    end: number,
    part: (page: number, mask: number) => void,
    whole: (first: number, last: number) => void,
  ): void {
    const first = Math.ceil(at / PAGE)
    const last = Math.floor(end / PAGE)
    if (first > last) {
      part(last, maskOf(at % PAGE, end - at))
      return
    }
    if (at % PAGE !== 0) part(first - 1, maskOf(at % PAGE, first * PAGE - at))
    if (first < last) whole(first, last)
    if (end % PAGE !== 0) part(last, maskOf(0, end - last * PAGE))
  }

  #check(at: number, length: number): void {
    const end = at + length
    assert(!this.#released, 'a released epoch is not used')
    assert(at >= 0 && length >= 0 && end <= this.#size, 'a range lies on the disk')
    assert(at % SECTOR === 0 && (end % SECTOR === 0 || end === this.#size), 'a range is of sectors')
  }
}

function isData(entry: number): boolean {
  return entry !== 0 && entry >>> 8 < FIRST_RESERVED
}

function entryOf(slot: number, mask: number): number {
  return (slot << 8) | mask
}

function kindOf(entry: number): HeldKind {
  const slot = entry >>> 8
  return slot === PUNCHED ? 'punched' : slot === KEPT ? 'kept' : 'data'
}

/** The sectors of a page that `length` bytes from `offset` touch. */
function maskOf(offset: number, length: number): number {
  const first = offset / SECTOR
  const count = Math.ceil(length / SECTOR)
  return ((1 << count) - 1) << first
}

function sectorsOf(mask: number): number {
  return SECTORS_OF_MASK[mask] ?? 0
}

/** Where a slot begins in its slab. */
function placeOf(slot: number): number {
  return (slot & (PAGES_PER_SLAB - 1)) * PAGE
}

function isNextInSlab(slot: number): boolean {
  return (slot + 1) % PAGES_PER_SLAB !== 0
}
