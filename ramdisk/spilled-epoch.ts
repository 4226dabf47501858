/**
 * What was written to one disk between two checkpoints, without the data: where the record of each sector lies. For the
 * part of an epoch that the memory does not hold (docs/decisions/0022-spilled-epochs.md).
 *
 * A tree (page-tree.ts) has an entry for each sector:
 *     0             it is not held
 *     above 0       the number of its record
 *     PUNCHED, KEPT it is zeroes whose space may be given up, or not; a run of them is kept as one
 * The table of records tells the place and length of each. It only grows: a record that was overwritten keeps its 16 bytes.
 *
 * Invariants:
 *  - `bytes` and `zeroBytes` are exactly the sectors held as data and as zeroes.
 *  - A call that throws Fault NO_MEMORY has changed nothing. clear() never throws it.
 *  - Tree and table live in slots of the page memory, which counts them: an epoch that holds nothing holds none.
 *  - Offsets and lengths are as in an Epoch.
 */

import { assert } from '../core/assert.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'
import { SECTOR } from '../core/units.ts'
import type { HeldRun } from './epoch.ts'
import { indexSlotsFor, PAGE, PAGES_PER_SLAB, type PageMemory } from './page-memory.ts'
import { PageTree } from './page-tree.ts'
import type { RecordSource } from './record-source.ts'
import { SlotArena } from './slot-arena.ts'
import { fillPieces, SpilledLoan, type SpilledPiece } from './spilled-loan.ts'

const KEPT = -1
const PUNCHED = -2

/** Words of a record in the table: its place (high, low) and its length; the fourth is not used. */
const RECORD_WORDS = 4
const RECORDS_PER_PAGE = PAGE / 4 / RECORD_WORDS
const MOST_RECORDS = 0x7fffffff

export class SpilledEpoch {
  #size: number
  readonly #source: RecordSource
  readonly #arena: SlotArena
  readonly #tree: PageTree
  /** The slots of the table, in order. */
  #table: number[] = []
  #records = 0
  #firstPlace = 0
  #bytes = 0
  #zeroBytes = 0
  #released = false

  /** @param diskSize bytes; nothing beyond is ever held */
  constructor(memory: PageMemory, diskSize: number, source: RecordSource) {
    this.#size = diskSize
    this.#source = source
    this.#arena = new SlotArena(memory)
    this.#tree = new PageTree(this.#arena, sectorsTo(diskSize), (entry, sectors) => {
      if (entry > 0) this.#bytes -= sectors * SECTOR
      else this.#zeroBytes -= sectors * SECTOR
    })
  }

  /** As Epoch.grow(). */
  grow(diskSize: number): void {
    this.#tree.grow(sectorsTo(diskSize))
    this.#size = diskSize
  }

  /** Bytes held as data, elsewhere: whole sectors. */
  get bytes(): number {
    return this.#bytes
  }

  get zeroBytes(): number {
    return this.#zeroBytes
  }

  get isEmpty(): boolean {
    return this.#bytes === 0 && this.#zeroBytes === 0
  }

  /**
   * The range has the data of the record at `place`, all of it. Places only grow.
   * @throws Fault NO_MEMORY at the memory limit, leaving the epoch as it was
   */
  write(at: number, length: number, place: number): void {
    this.#check(at, length)
    if (length === 0) return
    const [first, end] = [at / SECTOR, sectorsTo(at + length)]
    this.#arena.reserve(indexSlotsFor(end - first))
    this.#tree.plant()
    const record = this.#enter(place, length)
    this.#tree.fill(first, end, 0)
    for (let sector = first; sector < end; sector += 1) this.#tree.set(sector, record)
    this.#bytes += (end - first) * SECTOR
  }

  /** The range reads as zeroes. @throws as write() */
  zero(at: number, length: number, punch: boolean): void {
    this.#check(at, length)
    if (length === 0) return
    const [first, end] = [at / SECTOR, sectorsTo(at + length)]
    this.#arena.reserve(indexSlotsFor(1))
    this.#tree.plant()
    this.#tree.fill(first, end, punch ? PUNCHED : KEPT)
    this.#zeroBytes += (end - first) * SECTOR
  }

  /** Forgets the range: reads of it go to what lies below. */
  clear(at: number, length: number): void {
    this.#check(at, length)
    if (length === 0 || this.isEmpty) return
    this.#tree.fill(at / SECTOR, sectorsTo(at + length), 0)
    if (this.#bytes + this.#zeroBytes === 0) this.#giveBack()
  }

  /** Fills the zeroes of the range, and leaves what is data, or not held. */
  overlay(into: Buffer, at: number): void {
    this.#check(at, into.length)
    const end = at + into.length
    for (let run = this.next(at, end); run !== undefined; run = this.next(run.at + run.length, end))
      if (run.kind !== 'data') into.fill(0, run.at - at, run.at - at + run.length)
  }

  /** Copies what the range holds into `into`, the data from where it lies, and leaves the others. @throws Fault IO */
  copy(into: Buffer, at: number): MaybePromise<void> {
    this.overlay(into, at)
    return fillPieces(this.#source, this.pieces(at, at + into.length), into, at)
  }

  /** The data of [at, end), as it is now. */
  pieces(at: number, end: number): SpilledPiece[] {
    this.#check(at, end - at)
    const pieces: SpilledPiece[] = []
    for (let run = this.next(at, end); run !== undefined; run = this.next(run.at + run.length, end))
      if (run.kind === 'data') this.#cut(run, pieces)
    return pieces
  }

  /** Keeps the records of pieces of this epoch where they are until they are read, whatever becomes of the epoch. */
  lend(pieces: readonly SpilledPiece[]): SpilledLoan {
    return new SpilledLoan(this.#source, pieces, this.#source.pin(this.#firstPlace))
  }

  /** As Epoch.sameUntil(). */
  sameUntil(at: number, end: number): number {
    this.#check(at, end - at)
    if (this.isEmpty) return -end
    const held = this.#tree.get(Math.floor(at / SECTOR)) !== 0
    let sector = Math.floor(at / SECTOR)
    while (sector * SECTOR < end && (this.#tree.get(sector) !== 0) === held)
      sector += this.#tree.span
    const until = Math.min(sector * SECTOR, end)
    return held ? until : -until
  }

  /** As Epoch.next(): a run of data may be of many records. */
  next(
    from: number,
    end: number,
    mostData = Number.MAX_SAFE_INTEGER,
    mostZeroes = Number.MAX_SAFE_INTEGER,
  ): HeldRun | undefined {
    const limit = Math.min(end, this.#size)
    if (from >= limit || this.isEmpty) return undefined
    const isHeld = this.#tree.get(Math.floor(from / SECTOR)) !== 0
    const at = isHeld ? from : -this.sameUntil(from, limit)
    if (at >= limit) return undefined
    const kind = kindOf(this.#tree.get(Math.floor(at / SECTOR)))
    const longest = kind === 'data' ? mostData : mostZeroes
    const most = longest < limit - at ? at + longest : limit
    let sector = Math.floor(at / SECTOR)
    while (sector * SECTOR < most) {
      const entry = this.#tree.get(sector)
      if (entry === 0 || kindOf(entry) !== kind) break
      sector += this.#tree.span
    }
    return { at, length: Math.min(sector * SECTOR, most) - at, kind }
  }

  /** Gives the memory back. The epoch must not be used again; what was taken of it before stays good while it is pinned. */
  release(): void {
    assert(!this.#released, 'an epoch is released once')
    this.#released = true
    this.#giveBack()
  }

  #giveBack(): void {
    this.#bytes = 0
    this.#zeroBytes = 0
    this.#records = 0
    this.#table = []
    this.#tree.reset()
    this.#arena.release()
  }

  /** Puts a record into the table. @returns its number, from 1 on */
  #enter(place: number, length: number): number {
    const index = this.#records
    assert(index < MOST_RECORDS, 'an epoch has fewer than 2^31 records')
    if (index === 0) this.#firstPlace = place
    assert(place >= this.#firstPlace, 'records come in order')
    if (index % RECORDS_PER_PAGE === 0) this.#table.push(this.#arena.allocate())
    this.#records = index + 1
    const words = this.#wordsOf(index)
    const start = this.#wordOf(index)
    words[start] = Math.floor(place / 2 ** 32)
    words[start + 1] = place | 0
    words[start + 2] = length
    return index + 1
  }

  /** Adds a run of data to `pieces`, record by record. */
  #cut(run: HeldRun, pieces: SpilledPiece[]): void {
    const runEnd = run.at + run.length
    let at = run.at
    while (at < runEnd) {
      const record = this.#tree.get(Math.floor(at / SECTOR))
      let sector = Math.floor(at / SECTOR) + 1
      while (sector * SECTOR < runEnd && this.#tree.get(sector) === record) sector += 1
      const until = Math.min(sector * SECTOR, runEnd)
      const words = this.#wordsOf(record - 1)
      const start = this.#wordOf(record - 1)
      const [high = 0, low = 0, recordLength = 0] = words.subarray(start, start + 3)
      const place = high * 2 ** 32 + (low >>> 0)
      pieces.push({ at, length: until - at, place, recordLength })
      at = until
    }
  }

  #slotOf(index: number): number {
    const slot = this.#table[Math.floor(index / RECORDS_PER_PAGE)]
    assert(slot !== undefined, 'a record is in the table')
    return slot
  }

  #wordsOf(index: number): Int32Array {
    const slab = this.#arena.slabs[Math.floor(this.#slotOf(index) / PAGES_PER_SLAB)]
    assert(slab !== undefined, 'a slot lies in a slab')
    return slab.words
  }

  #wordOf(index: number): number {
    const page = this.#slotOf(index) % PAGES_PER_SLAB
    return page * (PAGE / 4) + (index % RECORDS_PER_PAGE) * RECORD_WORDS
  }

  #check(at: number, length: number): void {
    const end = at + length
    assert(!this.#released, 'a released epoch is not used')
    assert(at >= 0 && length >= 0 && end <= this.#size, 'a range lies on the disk')
    assert(at % SECTOR === 0 && (end % SECTOR === 0 || end === this.#size), 'a range is of sectors')
  }
}

function sectorsTo(end: number): number {
  return Math.ceil(end / SECTOR)
}

function kindOf(entry: number): HeldRun['kind'] {
  return entry === PUNCHED ? 'punched' : entry === KEPT ? 'kept' : 'data'
}
