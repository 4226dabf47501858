/**
 * The entries of QCOW2, standard and extended (qcow2.rst, "Cluster mapping" and "Extended L2 Entries"). A standard entry
 * has a single part, an extended one 32. Entries are read by hand, without an allocation: this is the data path.
 */

import { assert } from '../../core/assert.ts'
import { compressedEntry, readCompressed, type CompressedPlace } from './compressed.ts'
import { EntryFormat, NOWHERE } from './entry-format.ts'
import { MOST_HOST_OFFSET, type Layout } from './layout.ts'

const HIGH = 2 ** 32
/** Bits 63 and 62 of an entry, and its offset (bits 9 to 55), in the upper and lower 32 bits. */
const COPIED = 0x8000_0000
const COMPRESSED = 0x4000_0000
const OFFSET_HIGH = 0x00ff_ffff
const OFFSET_LOW = 0xffff_fe00
const RESERVED_HIGH = 0x3f00_0000
const RESERVED_LOW = 0x0000_01fe
const ZERO_FLAG = 1

export interface L2FormatOptions {
  readonly layout: Layout
  /** Version 2 knows no zero flag. */
  readonly version: 2 | 3
  /** Guest clusters are in a file of their own, at their own offsets; offset 0 can be meant there. */
  readonly dataFile: boolean
}

export class L2Format extends EntryFormat {
  readonly layout: Layout
  readonly version: 2 | 3
  readonly zeroFlag: boolean
  readonly dataFile: boolean
  readonly all: number

  constructor({ layout, version, dataFile }: L2FormatOptions) {
    super()
    this.layout = layout
    this.zeroFlag = version === 3
    this.version = version
    this.dataFile = dataFile
    this.all = layout.extended ? 0xffff_ffff : 1
  }

  look(table: Buffer, index: number): void {
    const { extended, l2EntryBytes } = this.layout
    const at = index * l2EntryBytes
    const high = table.readUInt32BE(at)
    const low = table.readUInt32BE(at + 4)
    this.copied = (high & COPIED) !== 0
    this.compressed = (high & COMPRESSED) !== 0
    if (this.compressed) {
      this.host = NOWHERE
      this.allocated = this.all
      this.zeroes = 0
      return
    }
    const offset = (high & OFFSET_HIGH) * HIGH + ((low & OFFSET_LOW) >>> 0)
    const mapped = offset !== 0 || (this.dataFile && this.copied)
    this.host = mapped ? offset : NOWHERE
    if (extended) {
      this.zeroes = table.readUInt32BE(at + 8)
      this.allocated = table.readUInt32BE(at + 12)
      return
    }
    this.zeroes = this.version === 3 ? low & ZERO_FLAG : 0
    this.allocated = mapped && this.zeroes === 0 ? 1 : 0
  }

  compressedPlace(table: Buffer, index: number): CompressedPlace {
    const entry = table.readBigUInt64BE(index * this.layout.l2EntryBytes)
    return readCompressed(entry, this.layout.clusterBits)
  }

  put(
    table: Buffer,
    index: number,
    host: number,
    allocated: number,
    zeroes: number,
    copied = true,
  ): void {
    const { extended, l2EntryBytes } = this.layout
    assert((allocated & zeroes) === 0, 'a part is either allocated or zero')
    assert(host !== NOWHERE || allocated === 0, 'what is allocated is somewhere')
    const at = index * l2EntryBytes
    const mapped = host !== NOWHERE
    const high = mapped ? Math.floor(host / HIGH) + (copied ? COPIED : 0) : 0
    let low = mapped ? host % HIGH : 0
    if (extended) {
      table.writeUInt32BE(zeroes >>> 0, at + 8)
      table.writeUInt32BE(allocated >>> 0, at + 12)
    } else if (zeroes !== 0) {
      assert(this.version === 3, 'version 2 has no zero flag')
      low += ZERO_FLAG
    }
    table.writeUInt32BE(high, at)
    table.writeUInt32BE(low, at + 4)
  }

  putCompressed(table: Buffer, index: number, place: CompressedPlace): void {
    const { clusterBits, extended, l2EntryBytes } = this.layout
    const at = index * l2EntryBytes
    table.writeBigUInt64BE(compressedEntry(place, clusterBits), at)
    if (extended) table.writeBigUInt64BE(0n, at + 8)
  }

  objection(table: Buffer, index: number, fileSize: number, guestAt: number): string | undefined {
    this.look(table, index)
    if (this.compressed) return this.#compressedObjection(table, index, fileSize)
    const { clusterSize, extended, l2EntryBytes } = this.layout
    const at = index * l2EntryBytes
    const high = table.readUInt32BE(at)
    const low = table.readUInt32BE(at + 4)
    const reserved = RESERVED_LOW | (extended || this.version === 2 ? ZERO_FLAG : 0)
    if ((high & RESERVED_HIGH) !== 0 || (low & reserved) !== 0) return 'reserved bits are set'
    if ((this.allocated & this.zeroes) !== 0) return 'a subcluster is both allocated and zero'
    if (this.host === NOWHERE) {
      if (this.allocated !== 0) return 'subclusters are allocated, but no cluster'
      return undefined
    }
    if (this.host % clusterSize !== 0) return `the offset ${this.host} is no cluster boundary`
    if (this.host > MOST_HOST_OFFSET) return `the offset ${this.host} is beyond every file`
    if (this.dataFile)
      return this.host === guestAt ? undefined : 'the offset differs from the guest offset'
    if (this.host >= fileSize) return `the cluster at ${this.host} is beyond the end of the file`
    return undefined
  }

  tableAt(l1: Buffer, index: number): number {
    return l1Offset(l1, index)
  }

  owns(l1: Buffer, index: number): boolean {
    return l1Copied(l1, index)
  }

  name(l1: Buffer, index: number, at: number): void {
    putL1(l1, index, at)
  }

  #compressedObjection(table: Buffer, index: number, fileSize: number): string | undefined {
    if (this.dataFile) return 'a compressed cluster in an image with a data file'
    if (this.copied) return 'a compressed cluster has bit 63 set'
    const { at } = this.compressedPlace(table, index)
    if (at === 0) return 'compressed data at offset 0'
    if (at >= fileSize) return `compressed data at ${at}, beyond the end of the file`
    return undefined
  }
}

/** The offset in an L1 entry, or 0 where there is no L2 table (qcow2.rst, "L1 table entry"). */
export function l1Offset(table: Buffer, index: number): number {
  const high = table.readUInt32BE(index * 8)
  const low = table.readUInt32BE(index * 8 + 4)
  return (high & OFFSET_HIGH) * HIGH + ((low & OFFSET_LOW) >>> 0)
}

/** Whether the L2 table belongs to this L1 table alone and may be changed in place. */
function l1Copied(table: Buffer, index: number): boolean {
  return (table.readUInt32BE(index * 8) & COPIED) !== 0
}

/** @param at offset of an L2 table that is referred to once */
function putL1(table: Buffer, index: number, at: number): void {
  table.writeUInt32BE(Math.floor(at / HIGH) + COPIED, index * 8)
  table.writeUInt32BE(at % HIGH, index * 8 + 4)
}

/** Why an L1 entry cannot be used. */
export function l1Objection(
  table: Buffer,
  index: number,
  layout: Layout,
  fileSize: number,
): string | undefined {
  const high = table.readUInt32BE(index * 8)
  const low = table.readUInt32BE(index * 8 + 4)
  if ((high & 0x7f00_0000) !== 0 || (low & 0x1ff) !== 0) return 'reserved bits are set'
  const at = l1Offset(table, index)
  if (at % layout.clusterSize !== 0) return `the offset ${at} is no cluster boundary`
  // The whole table must be there: the end of the file may lie within its cluster only where nothing was ever stored.
  if (at !== 0 && at >= fileSize) return `the L2 table at ${at} is beyond the end of the file`
  return undefined
}
