/**
 * The batmap: one bit for each block, set where every sector of the block is in this image, so that its sector bitmap
 * need not be read. The specification does not know it: tapdisk keeps it, right behind the block table, in the images
 * that it makes (creator `tap`, version 1.1 and later), and libvhd refuses images of version 1.2 and later without it.
 *
 * A set bit is a claim, a clear one says nothing: a batmap that is too old is still right.
 */

import { GiB, SECTOR } from '../../core/units.ts'
import { bytes, letters, structure, u32, u64, u8, type ValueOf } from '../structure.ts'
import { checksum } from './checksum.ts'
import { LARGEST_DISK, type Footer } from './footer.ts'

export const BATMAP_HEADER = structure('batmap header', SECTOR, {
  cookie: [0, letters(8)],
  offset: [8, u64],
  sectors: [16, u32],
  version: [20, u32],
  checksum: [24, u32],
  marker: [28, u8],
  /** libvhd keeps the hash of an encryption key here. */
  reserved: [29, bytes(483)],
})

export type BatmapHeader = ValueOf<typeof BATMAP_HEADER>

const COOKIE = 'tdbatmap'
const VERSION = 0x0001_0002
const LARGEST_FILE = BigInt(2 * LARGEST_DISK)

/** Whether the creator of this image has put a batmap into it. */
export function hasBatmap({ creator, creatorVersion }: Footer): boolean {
  return creator.startsWith('tap') && creatorVersion >= 0x0001_0001
}

/** Bytes of a batmap for that many blocks. */
export function batmapSize(blocks: number): number {
  return Math.max(1, Math.ceil(blocks / 8 / SECTOR)) * SECTOR
}

/**
 * The bytes of the map that libvhd reads and checks. It calculates them from the size of the disk alone, rounded down, so
 * that a few blocks at the end can be beyond them. Their bits stay clear.
 */
export function batmapCoverage(diskSize: number): number {
  return Math.max(1, Math.ceil(Math.floor(diskSize / (GiB / 64)) / SECTOR)) * SECTOR
}

/** @param map all of it, of which `covered` bytes count */
export function newBatmapHeader(offset: number, map: Uint8Array, covered: number): BatmapHeader {
  return {
    cookie: COOKIE,
    offset,
    sectors: map.length / SECTOR,
    version: VERSION,
    checksum: checksum(map.subarray(0, covered)),
    marker: 0,
    reserved: Buffer.alloc(483),
  }
}

/** The header in these 512 bytes, or why they are none. */
export function parseBatmapHeader(image: Buffer, blocks: number): BatmapHeader | string {
  if (image.toString('latin1', 0, 8) !== COOKIE) return 'the batmap is lost'
  if (image.readBigUInt64BE(8) > LARGEST_FILE) return 'the batmap is beyond all files'
  const header = BATMAP_HEADER.read(image)
  const { offset, sectors, version } = header
  if (version > VERSION) return `version 0x${version.toString(16)} of the batmap is not known`
  if (offset === 0 || offset % SECTOR !== 0) return `the batmap is at byte ${offset}`
  if (sectors * SECTOR * 8 < blocks) return `the batmap has ${sectors} sectors for ${blocks} blocks`
  return header
}

/** Whether the map is what its header says. Version 1.1 summed up signed bytes. */
export function batmapFits(header: BatmapHeader, map: Buffer, covered: number): boolean {
  const counted = map.subarray(0, covered)
  if (header.checksum === checksum(counted)) return true
  if (header.version !== 0x0001_0001) return false
  return header.checksum === ~counted.reduce((sum, byte) => sum + ((byte << 24) >> 24), 0) >>> 0
}
