/**
 * The header of images with a block table (the specification's section "Dynamic Disk Header Format"), and the places of
 * the parent's names that it lists.
 */

import { SECTOR } from '../../core/units.ts'
import { bytes, letters, structure, times, u32, u64, type ValueOf } from '../structure.ts'
import { checksum } from './checksum.ts'
import { offset64, type Footer } from './footer.ts'

const LOCATOR = structure('parent locator', 24, {
  code: [0, letters(4)],
  dataSpace: [4, u32],
  dataLength: [8, u32],
  reserved: [12, u32],
  dataOffset: [16, u64],
})

export type Locator = ValueOf<typeof LOCATOR>

export const LOCATORS = 8

export const NO_LOCATOR: Locator = {
  code: '\0\0\0\0',
  dataSpace: 0,
  dataLength: 0,
  reserved: 0,
  dataOffset: 0,
}

export const DYNAMIC_HEADER = structure('dynamic disk header', 1024, {
  cookie: [0, letters(8)],
  dataOffset: [8, offset64],
  tableOffset: [16, u64],
  version: [24, u32],
  tableEntries: [28, u32],
  blockSize: [32, u32],
  checksum: [36, u32],
  parentUuid: [40, bytes(16)],
  parentTimestamp: [56, u32],
  reserved: [60, u32],
  /** UTF-16, big-endian. */
  parentName: [64, bytes(512)],
  locators: [576, times(LOCATORS, LOCATOR)],
  reserved2: [768, bytes(256)],
})

export type DynamicHeader = ValueOf<typeof DYNAMIC_HEADER>

/** What the specification suggests and all others use; libvhd takes no larger ones. */
export const USUAL_BLOCK = 2 * 1024 * 1024
export const SMALLEST_BLOCK = SECTOR
export const LARGEST_BLOCK = 256 * 1024 * 1024

/** Entries of a block table that are held in memory: 64 MiB, sixteen times what the usual block size needs. */
export const MOST_BLOCKS = 16 * 1024 * 1024

const COOKIE = 'cxsparse'
const VERSION = 0x0001_0000

export type NewHeader = Pick<
  DynamicHeader,
  | 'tableOffset'
  | 'tableEntries'
  | 'blockSize'
  | 'parentUuid'
  | 'parentTimestamp'
  | 'parentName'
  | 'locators'
>

/** A new image's header, without its checksum. */
export function newHeader(header: NewHeader): DynamicHeader {
  return {
    ...header,
    cookie: COOKIE,
    dataOffset: undefined,
    version: VERSION,
    checksum: 0,
    reserved: 0,
    reserved2: Buffer.alloc(256),
  }
}

/** The header's bytes, with the checksum that belongs to them. */
export function headerBytes(header: DynamicHeader): Buffer {
  const field = DYNAMIC_HEADER.offsetOf('checksum')
  const image = DYNAMIC_HEADER.bytesOf(header)
  image.writeUInt32BE(checksum(image, field), field)
  return image
}

/** The header in these 1024 bytes, or why they are none. @throws Fault INVALID for numbers beyond all disks */
export function parseHeader(image: Buffer, footer: Footer): DynamicHeader | string {
  if (image.toString('latin1', 0, 8) !== COOKIE) return 'there is no dynamic disk header'
  const field = DYNAMIC_HEADER.offsetOf('checksum')
  if (image.readUInt32BE(field) !== checksum(image, field))
    return 'the checksum of the dynamic disk header is wrong'
  const header = DYNAMIC_HEADER.read(image)
  return objection(header, footer) ?? header
}

/** Blocks of a disk. */
export function blocksOf(size: number, blockSize: number): number {
  return Math.ceil(size / blockSize)
}

/** Bytes of a block's sector bitmap, which precedes its data. */
export function bitmapSize(blockSize: number): number {
  return Math.ceil(blockSize / SECTOR / 8 / SECTOR) * SECTOR
}

function objection(header: DynamicHeader, { currentSize }: Footer): string | undefined {
  const { version, blockSize, tableOffset, tableEntries } = header
  if (version !== VERSION) return `version 0x${version.toString(16)} of the header is not known`
  if (blockSize === 0 || (blockSize & (blockSize - 1)) !== 0)
    return `the block size ${blockSize} is no power of two`
  if (blockSize < SMALLEST_BLOCK || blockSize > LARGEST_BLOCK)
    return `the block size ${blockSize} is not from ${SMALLEST_BLOCK} to ${LARGEST_BLOCK}`
  const blocks = blocksOf(currentSize, blockSize)
  if (blocks > MOST_BLOCKS) return `${blocks} blocks of ${blockSize} bytes are too many`
  if (tableEntries < blocks)
    return `the block table has ${tableEntries} entries for ${blocks} blocks`
  if (tableOffset < SECTOR || tableOffset % SECTOR !== 0)
    return `the block table is at byte ${tableOffset}`
  return undefined
}
