/**
 * The entries of QCOW 1 (QEMU's block/qcow.c): an L1 entry is the offset of an L2 table; an L2 entry the offset of a
 * cluster, or with bit 63 set the place of a compressed one, its length in the bits below.
 */

import { assert } from '../../core/assert.ts'
import type { CompressedPlace } from './compressed.ts'
import { EntryFormat, NOWHERE } from './entry-format.ts'
import type { Qcow1Header } from './qcow1-header.ts'
import { MOST_HOST_OFFSET, type MappingLayout } from './layout.ts'

const COMPRESSED = 0x8000_0000
const HIGH = 2 ** 32

export class Qcow1Format extends EntryFormat {
  readonly layout: MappingLayout
  readonly zeroFlag = false
  readonly dataFile = false
  readonly all = 1

  constructor({ clusterBits, clusterSize, l2Entries }: Qcow1Header) {
    super()
    this.layout = {
      clusterBits,
      clusterSize,
      subclusters: 1,
      subclusterSize: clusterSize,
      l2EntryBytes: 8,
      l2Entries,
      l2Bytes: l2Entries * 8,
      l2Span: l2Entries * clusterSize,
    }
  }

  look(table: Buffer, index: number): void {
    const high = table.readUInt32BE(index * 8)
    const low = table.readUInt32BE(index * 8 + 4)
    this.zeroes = 0
    this.compressed = high >= COMPRESSED
    const mapped = !this.compressed && (high !== 0 || low !== 0)
    this.copied = mapped
    this.host = mapped ? high * HIGH + low : NOWHERE
    this.allocated = mapped || this.compressed ? 1 : 0
  }

  compressedPlace(table: Buffer, index: number): CompressedPlace {
    const entry = table.readBigUInt64BE(index * 8)
    const width = BigInt(63 - this.layout.clusterBits)
    const length = Number(entry >> width) & (this.layout.clusterSize - 1)
    return { at: Number(entry & ((1n << width) - 1n)), length }
  }

  put(table: Buffer, index: number, host: number, allocated: number, zeroes: number): void {
    assert(zeroes === 0, 'version 1 has no zero flag')
    assert(host !== NOWHERE && allocated === 1, 'version 1 never unmaps')
    table.writeUInt32BE(Math.floor(host / HIGH), index * 8)
    table.writeUInt32BE(host % HIGH, index * 8 + 4)
  }

  objection(table: Buffer, index: number, fileSize: number): string | undefined {
    this.look(table, index)
    if (this.compressed) {
      const { at, length } = this.compressedPlace(table, index)
      if (length === 0) return 'a compressed cluster of no bytes'
      return at + length > fileSize || at === 0
        ? `compressed data at ${at} is not there`
        : undefined
    }
    if (this.host === NOWHERE) return undefined
    if (this.host > MOST_HOST_OFFSET) return 'the offset is beyond every file'
    if (this.host % this.layout.clusterSize !== 0)
      return `the offset ${this.host} is no cluster boundary`
    if (this.host >= fileSize) return `the cluster at ${this.host} is beyond the end of the file`
    return undefined
  }

  tableAt(l1: Buffer, index: number): number {
    return l1.readUInt32BE(index * 8) * HIGH + l1.readUInt32BE(index * 8 + 4)
  }

  owns(l1: Buffer, index: number): boolean {
    return this.tableAt(l1, index) !== 0
  }

  name(l1: Buffer, index: number, at: number): void {
    l1.writeUInt32BE(Math.floor(at / HIGH), index * 8)
    l1.writeUInt32BE(at % HIGH, index * 8 + 4)
  }
}
