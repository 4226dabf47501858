/**
 * Persistent bitmaps (qcow2.rst, "Bitmaps extension" and "Bitmaps"): colotap does not keep them up to date. Those that
 * must follow every change are marked as in use before the first change, which says exactly that; the others stay valid.
 */

import { Fault } from '../../core/fault.ts'
import { structure, u16, u32, u64, u8 } from '../structure.ts'
import { roundUp, type Layout } from './layout.ts'

const BITMAPS_EXTENSION = structure('bitmaps extension', 24, {
  nbBitmaps: [0, u32],
  reserved: [4, u32],
  bitmapDirectorySize: [8, u64],
  bitmapDirectoryOffset: [16, u64],
})

const DIRECTORY_ENTRY = structure('bitmap directory entry', 24, {
  bitmapTableOffset: [0, u64],
  bitmapTableSize: [8, u32],
  flags: [12, u32],
  type: [16, u8],
  granularityBits: [17, u8],
  nameSize: [18, u16],
  extraDataSize: [20, u32],
})

export const BITMAP_FLAGS_AT = DIRECTORY_ENTRY.offsetOf('flags')
export const IN_USE = 1 << 0
export const AUTO = 1 << 1

/** QEMU's limits, which bound the memory that an image can ask for. */
const MOST_BITMAPS = 65_535
const MOST_DIRECTORY_BYTES = 64 * 1024 * 1024
const MOST_TABLE_ENTRIES = 0x800_0000 / 8

export interface BitmapDirectory {
  readonly count: number
  readonly at: number
  readonly length: number
}

export interface Bitmap {
  readonly name: string
  readonly flags: number
  readonly granularity: number
  readonly tableAt: number
  readonly tableEntries: number
  /** Byte offset of the entry in the directory. */
  readonly entryAt: number
}

/** @throws Fault INVALID when there can be no such directory */
export function parseBitmapsExtension(
  data: Buffer,
  layout: Layout,
  fileSize: number,
): BitmapDirectory {
  if (data.length !== BITMAPS_EXTENSION.size)
    throw new Fault('INVALID', `a bitmaps extension of ${data.length} bytes`)
  const fields = BITMAPS_EXTENSION.read(data)
  const { nbBitmaps: count, bitmapDirectoryOffset: at, bitmapDirectorySize: length } = fields
  if (count === 0 || count > MOST_BITMAPS) throw new Fault('INVALID', `${count} bitmaps`)
  if (length > MOST_DIRECTORY_BYTES || length < count * DIRECTORY_ENTRY.size)
    throw new Fault('INVALID', `a bitmap directory of ${length} bytes`)
  if (at % layout.clusterSize !== 0 || at === 0)
    throw new Fault('INVALID', 'the bitmap directory begins at no cluster boundary')
  if (at + length > roundUp(fileSize, layout.clusterSize))
    throw new Fault('INVALID', 'the bitmap directory is beyond the end of the file')
  return { count, at, length }
}

/** @param directory all of its bytes */
export function parseBitmapDirectory(
  directory: Buffer,
  count: number,
  layout: Layout,
  fileSize: number,
): Bitmap[] {
  const bitmaps: Bitmap[] = []
  let at = 0
  for (let index = 0; index < count; index += 1) {
    if (at + DIRECTORY_ENTRY.size > directory.length) throw cutShort(index)
    const entry = DIRECTORY_ENTRY.read(directory, at)
    const nameAt = at + DIRECTORY_ENTRY.size + entry.extraDataSize
    const end = roundUp(nameAt + entry.nameSize, 8)
    if (end > directory.length) throw cutShort(index)
    const { bitmapTableOffset: tableAt, bitmapTableSize: tableEntries } = entry
    if (entry.granularityBits > 52 || entry.nameSize === 0)
      throw new Fault('INVALID', `bitmap ${index} has no name or an absurd granularity`)
    if (tableEntries > MOST_TABLE_ENTRIES || tableAt % layout.clusterSize !== 0)
      throw new Fault('INVALID', `bitmap ${index} has an absurd table`)
    if (tableAt + tableEntries * 8 > roundUp(fileSize, layout.clusterSize))
      throw new Fault('INVALID', `the table of bitmap ${index} is beyond the end of the file`)
    bitmaps.push({
      name: directory.toString('utf8', nameAt, nameAt + entry.nameSize),
      flags: entry.flags,
      granularity: 2 ** entry.granularityBits,
      tableAt,
      tableEntries,
      entryAt: at,
    })
    at = end
  }
  return bitmaps
}

function cutShort(index: number): Fault {
  return new Fault('INVALID', `bitmap ${index} is beyond the end of the bitmap directory`)
}
