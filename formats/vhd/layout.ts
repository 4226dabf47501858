/**
 * Where things are in a VHD with a block table: the metadata, and the blocks behind each other. A block is its sector
 * bitmap and its data; the block table has the number of the sector where the bitmap begins.
 */

import { SECTOR } from '../../core/units.ts'
import type { BatmapHeader } from './batmap.ts'
import { bitmapSize, DYNAMIC_HEADER, type DynamicHeader } from './dynamic-header.ts'
import type { Footer } from './footer.ts'

/** The entry of a block that is not in the image. */
export const UNUSED = 0xffff_ffff

/** Bytes: the data of new blocks begin at a multiple, so that requests of file systems stay whole pages, unless the blocks are smaller. */
const PAGE = 4096

export interface Area {
  readonly name: string
  readonly at: number
  readonly length: number
}

/** The place of the batmap's header, right behind the block table. */
export function batmapHeaderOffset({ tableOffset, tableEntries }: DynamicHeader): number {
  return tableOffset + tableSize(tableEntries)
}

/** Bytes of a block table. */
export function tableSize(entries: number): number {
  return Math.max(1, Math.ceil((entries * 4) / SECTOR)) * SECTOR
}

/** Bytes that a block takes: its bitmap and its data. */
export function slotSize(blockSize: number): number {
  return bitmapSize(blockSize) + blockSize
}

/** Everything that is no block. */
export function metadataAreas(
  footer: Footer,
  header: DynamicHeader,
  batmap: BatmapHeader | undefined,
): readonly Area[] {
  const areas: Area[] = [
    { name: 'the copy of the footer', at: 0, length: SECTOR },
    { name: 'the dynamic header', at: footer.dataOffset ?? 0, length: DYNAMIC_HEADER.size },
    { name: 'the block table', at: header.tableOffset, length: tableSize(header.tableEntries) },
  ]
  if (batmap !== undefined) {
    const at = batmapHeaderOffset(header)
    areas.push({ name: 'the batmap header', at, length: SECTOR })
    areas.push({ name: 'the batmap', at: batmap.offset, length: batmap.sectors * SECTOR })
  }
  for (const { code, dataOffset, dataLength, dataSpace } of header.locators) {
    if (code === '\0\0\0\0') continue
    // The space should be in sectors, and is in bytes in most images.
    const space = dataSpace < SECTOR ? dataSpace * SECTOR : dataSpace
    areas.push({
      name: 'a parent locator',
      at: dataOffset,
      length: Math.max(space, Math.ceil(dataLength / SECTOR) * SECTOR),
    })
  }
  return areas
}

/** Why metadata cannot lie there, in a file of `fileSize` bytes. */
export function areasObjection(areas: readonly Area[], fileSize: number): string | undefined {
  const sorted = areas.toSorted((a, b) => a.at - b.at)
  for (const [index, { name, at, length }] of sorted.entries()) {
    if (at + length > fileSize) return `${name} lies beyond the end of the file, at byte ${at}`
    const next = sorted[index + 1]
    if (next !== undefined && at + length > next.at) return `${name} overlaps ${next.name}`
  }
  return undefined
}

/** Bytes up to the end of what comes last. */
export function endOf(areas: readonly Area[]): number {
  return areas.reduce((end, { at, length }) => Math.max(end, at + length), 0)
}

/** Why the blocks cannot lie where the table says, in a file of `fileSize` bytes. */
export function tableObjection(
  table: Uint32Array,
  blockSize: number,
  areas: readonly Area[],
  fileSize: number,
): string | undefined {
  const slot = slotSize(blockSize) / SECTOR
  const used = table.filter((entry) => entry !== UNUSED).sort()
  const places = areas.map(({ name, at, length }) => ({
    name,
    from: Math.floor(at / SECTOR),
    to: Math.ceil((at + length) / SECTOR),
  }))
  const fileEnd = Math.floor(fileSize / SECTOR)
  for (const [index, entry] of used.entries()) {
    if (entry + slot > fileEnd)
      return `the block at sector ${entry} lies beyond the end of the file; it was cut off`
    if (entry + slot > (used[index + 1] ?? Number.POSITIVE_INFINITY))
      return `the blocks at sectors ${entry} and ${used[index + 1] ?? entry} overlap`
    for (const { name, from, to } of places)
      if (entry < to && from < entry + slot) return `the block at sector ${entry} overlaps ${name}`
  }
  return undefined
}

/** Bytes up to the end of the last block, or of the metadata. */
export function endOfBlocks(table: Uint32Array, blockSize: number, metadataEnd: number): number {
  let last = -1
  for (const entry of table) if (entry !== UNUSED && entry > last) last = entry
  return last < 0 ? metadataEnd : Math.max(metadataEnd, last * SECTOR + slotSize(blockSize))
}

/** Where the next block goes, in bytes, when everything before `end` is taken. */
export function nextSlot(end: number, blockSize: number): number {
  const bitmap = bitmapSize(blockSize)
  const unit = Math.min(PAGE, blockSize)
  return Math.ceil((end + bitmap) / unit) * unit - bitmap
}

/** Bytes from the beginning of one new block to the next. */
export function slotStride(blockSize: number): number {
  const unit = Math.min(PAGE, blockSize)
  return Math.ceil(slotSize(blockSize) / unit) * unit
}
