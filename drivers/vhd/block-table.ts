/**
 * The block table in memory, and which of its sectors the file has an older version of.
 *
 * Invariant: an entry changes once, from UNUSED to a place; the file gets it only through snapshot().
 */

import { SECTOR } from '../../core/units.ts'
import { UNUSED } from '../../formats/vhd/layout.ts'

const PER_SECTOR = SECTOR / 4

/** One sector of the table, as it is to be written. */
export interface TableSector {
  readonly index: number
  readonly bytes: Buffer
}

export class BlockTable {
  #entries: Uint32Array
  readonly #dirty = new Set<number>()

  /** @param entries one for each block of the disk */
  constructor(entries: Uint32Array) {
    this.#entries = entries
  }

  get length(): number {
    return this.#entries.length
  }

  get hasDirty(): boolean {
    return this.#dirty.size > 0
  }

  get entries(): Uint32Array {
    return this.#entries
  }

  /** The sector where a block begins, or UNUSED. */
  at(block: number): number {
    return this.#entries[block] ?? UNUSED
  }

  set(block: number, sector: number): void {
    this.#entries[block] = sector
    this.#dirty.add(Math.floor(block / PER_SECTOR))
  }

  /** The sectors that the file lacks; they count as written until failed() takes that back. */
  snapshot(): readonly TableSector[] {
    const sectors = [...this.#dirty].sort((a, b) => a - b).map((index) => this.sector(index))
    this.#dirty.clear()
    return sectors
  }

  failed(sectors: readonly TableSector[]): void {
    for (const { index } of sectors) this.#dirty.add(index)
  }

  /** A sector of the table; entries beyond the disk are UNUSED. */
  sector(index: number): TableSector {
    const bytes = Buffer.alloc(SECTOR)
    for (let entry = 0; entry < PER_SECTOR; entry += 1)
      bytes.writeUInt32BE(this.at(index * PER_SECTOR + entry), entry * 4)
    return { index, bytes }
  }

  /** More blocks, none of which is in the image. */
  grow(length: number): void {
    const entries = new Uint32Array(length).fill(UNUSED)
    entries.set(this.#entries)
    this.#entries = entries
  }
}
