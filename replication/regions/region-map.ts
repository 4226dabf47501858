/**
 * Which regions of a disk may differ from the last checkpoint, as it will be known after a crash: coarser than the dirty
 * map in memory, and on stable storage before the image changes (as DRBD's activity log and bitmap).
 *
 * Invariants:
 *  - 15 A region is marked durably before anything in it is written; has() is true only then.
 *  - A region is cleared only by retain(), after a flush of the image before and since which nothing was written to it, nor
 *    is being written; also when several passes of retain() are under way.
 *  - Bits are set and cleared in the store one step after the other, in the order of the calls.
 *  - The map may say too much, never too little: a store that cannot be trusted is a map of everything.
 */

import { SECTOR } from '../../core/units.ts'
import type { RegionStore } from './region-store.ts'

const BITS_PER_SECTOR = 8 * SECTOR

/** A run of bytes on the disk. */
export interface ChangedRange {
  readonly at: number
  readonly length: number
}

export class RegionMap {
  #store: RegionStore
  #size: number
  #count: number
  /** As the store has it, or will have it before anybody is told so. */
  #bits: Buffer
  /** Durable marks; behind `bits` while these are being saved. */
  #durable: Buffer
  /** By region: the pass of retain() that was the last one to begin before it was last written. */
  #written: Uint32Array
  /** By region: writes that the image has begun and not ended. */
  #underWay: Uint16Array
  /** Passes of retain() that have begun. */
  #pass = 0
  /** Sectors of the bitmap that have to be saved. */
  #unsaved = new Set<number>()
  #saving: Promise<void> = Promise.resolve()
  #next: Promise<void> | undefined

  constructor(store: RegionStore, diskSize: number) {
    this.#store = store
    this.#size = diskSize
    this.#count = Math.ceil(diskSize / store.regionBytes)
    this.#written = new Uint32Array(this.#count)
    this.#underWay = new Uint16Array(this.#count)
    this.#bits = Buffer.from(store.found)
    this.#durable = Buffer.from(this.#bits)
  }

  get regionBytes(): number {
    return this.#store.regionBytes
  }

  /**
   * The disk has become larger: what it gained is marked durably when this resolves. Where it fails the map is one of the disk
   * as it was, whose store may be larger.
   * @param reopen gives a store of the new size that has what the present one has. @throws Fault
   */
  async grow(diskSize: number, reopen: () => Promise<RegionStore>): Promise<void> {
    while (this.#next !== undefined) await this.#next.catch(() => undefined)
    const [before, former] = [this.#size, this.#store]
    // Saves that are asked for meanwhile come after it.
    this.#saving = this.#saving
      .catch(() => undefined)
      .then(async () => {
        this.#adopt(await reopen())
        this.#reshape(diskSize)
        for (let region = this.#regionOf(before); region < this.#count; region += 1)
          this.#set(region, true)
      })
    await this.#saving
    try {
      await former.close()
      await this.#save()
    } catch (error) {
      this.#reshape(before)
      throw error
    }
  }

  /** Goes on with another store, which is to have what this one knows. */
  #adopt(store: RegionStore): void {
    const bits = Buffer.from(store.found)
    for (const [index, byte] of this.#bits.subarray(0, bits.length).entries())
      bits[index] = (bits[index] ?? 0) | byte
    this.#store = store
    this.#bits = bits
    this.#durable = Buffer.from(store.found)
    const sectors = [...this.#unsaved].filter((sector) => sector * SECTOR < bits.length)
    this.#unsaved = new Set(sectors)
  }

  #reshape(diskSize: number): void {
    const [written, underWay] = [this.#written, this.#underWay]
    this.#size = diskSize
    this.#count = Math.ceil(diskSize / this.regionBytes)
    this.#written = new Uint32Array(this.#count)
    this.#underWay = new Uint16Array(this.#count)
    this.#written.set(written.subarray(0, this.#count))
    this.#underWay.set(underWay.subarray(0, this.#count))
  }

  /** Whether every region of a range is marked already. Hot path. */
  has(at: number, length: number): boolean {
    const last = this.#regionOf(at + length - 1)
    for (let region = this.#regionOf(at); region <= last; region += 1) {
      if (!isSet(this.#durable, region)) return false
      this.#written[region] = this.#pass
    }
    return true
  }

  /** A write to a range, whose regions are marked, takes its time: none of them is cleared before release(). */
  hold(at: number, length: number): void {
    this.#addUnderWay(at, length, 1)
  }

  release(at: number, length: number): void {
    this.#addUnderWay(at, length, -1)
  }

  /** Marks every region of a range; durable when it resolves. @throws Fault when it cannot be made durable */
  async mark(at: number, length: number): Promise<void> {
    const last = this.#regionOf(at + length - 1)
    for (let region = this.#regionOf(at); region <= last; region += 1) this.#set(region, true)
    await this.#save()
    // A pass of retain() may have cleared some meanwhile, or a save may have failed for others.
    if (!this.has(at, length)) await this.mark(at, length)
  }

  /**
   * Clears the regions that are not needed any more.
   * @param isDirty whether a range differs from the last checkpoint
   * @param flush makes the image durable
   */
  async retain(
    isDirty: (at: number, length: number) => boolean,
    flush: () => Promise<void>,
  ): Promise<void> {
    this.#pass += 1
    const pass = this.#pass
    const clean: number[] = []
    for (let region = 0; region < this.#count; region += 1) {
      if (!isSet(this.#durable, region)) continue
      // What was written since the pass before is spared: it is likely to be written again.
      if (this.#isQuiet(region, pass - 1) && !this.#isDirty(region, isDirty)) clean.push(region)
    }
    if (clean.length === 0) return
    await flush()
    for (const region of clean) {
      if (!this.#isQuiet(region, pass) || this.#isDirty(region, isDirty)) continue
      this.#set(region, false)
      unset(this.#durable, region)
    }
    await this.#save()
  }

  /** Nothing of the disk up to byte `end` differs. */
  async clear(end: number): Promise<void> {
    const count = end >= this.#size ? this.#count : this.#regionOf(end)
    for (let region = 0; region < count; region += 1) {
      unset(this.#durable, region)
      this.#set(region, false)
    }
    await this.#save()
  }

  /** Resolves when the store has all that it was to be given, also what it did not take before. @throws Fault when it takes it not */
  saved(): Promise<void> {
    return this.#save()
  }

  /** What is marked, in runs. */
  ranges(): ChangedRange[] {
    const runs: ChangedRange[] = []
    for (let region = 0; region < this.#count; region += 1) {
      if (!isSet(this.#bits, region)) continue
      const first = region
      while (region + 1 < this.#count && isSet(this.#bits, region + 1)) region += 1
      const at = first * this.regionBytes
      runs.push({ at, length: Math.min(this.#size, (region + 1) * this.regionBytes) - at })
    }
    return runs
  }

  async close(): Promise<void> {
    await this.#next?.catch(() => undefined)
    await this.#saving.catch(() => undefined)
    await this.#store.close()
  }

  #isDirty(region: number, isDirty: (at: number, length: number) => boolean): boolean {
    const at = region * this.regionBytes
    return isDirty(at, Math.min(this.regionBytes, this.#size - at))
  }

  /** Whether nothing has been written to a region since a pass began, nor is being written. */
  #isQuiet(region: number, since: number): boolean {
    return this.#underWay[region] === 0 && (this.#written[region] ?? 0) < since
  }

  #addUnderWay(at: number, length: number, more: 1 | -1): void {
    const last = this.#regionOf(at + length - 1)
    for (let region = this.#regionOf(at); region <= last; region += 1) {
      this.#underWay[region] = (this.#underWay[region] ?? 0) + more
      this.#written[region] = this.#pass
    }
  }

  #set(region: number, on: boolean): void {
    if (isSet(this.#bits, region) === on) {
      // A mark that is not durable yet has to be waited for.
      if (on && !isSet(this.#durable, region)) this.#unsaved.add(sectorOf(region))
      return
    }
    if (on) set(this.#bits, region)
    else unset(this.#bits, region)
    this.#unsaved.add(sectorOf(region))
  }

  /** Whoever asks while a save runs shares the next one. */
  #save(): Promise<void> {
    this.#next ??= this.#saving
      .catch(() => undefined)
      .then(() => {
        this.#next = undefined
        this.#saving = this.#saveNow()
        return this.#saving
      })
    return this.#next
  }

  async #saveNow(): Promise<void> {
    if (this.#unsaved.size === 0) return
    const sectors = [...this.#unsaved].sort((a, b) => a - b)
    this.#unsaved = new Set()
    const saved = Buffer.from(this.#bits)
    try {
      await this.#store.save(saved, sectors)
    } catch (error) {
      for (const sector of sectors) this.#unsaved.add(sector)
      throw error
    }
    for (const sector of sectors)
      for (let byte = sector * SECTOR; byte < (sector + 1) * SECTOR; byte += 1)
        // What was cleared since is not durably marked.
        this.#durable[byte] = (saved[byte] ?? 0) & (this.#bits[byte] ?? 0)
  }

  #regionOf(at: number): number {
    return Math.floor(at / this.regionBytes)
  }
}

function sectorOf(region: number): number {
  return Math.floor(region / BITS_PER_SECTOR)
}

function isSet(bits: Buffer, region: number): boolean {
  return ((bits[region >> 3] ?? 0) & (1 << (region & 7))) !== 0
}

function set(bits: Buffer, region: number): void {
  bits[region >> 3] = (bits[region >> 3] ?? 0) | (1 << (region & 7))
}

function unset(bits: Buffer, region: number): void {
  bits[region >> 3] = (bits[region >> 3] ?? 0) & ~(1 << (region & 7))
}
