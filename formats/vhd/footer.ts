/**
 * The footer of a VHD: its last 512 bytes, and in images with a block table also its first ones (Microsoft's "Virtual
 * Hard Disk Image Format Specification", section "Hard Disk Footer Format").
 */

import { GiB, SECTOR } from '../../core/units.ts'
import { bytes, letters, structure, u32, u64, u8, type Field, type ValueOf } from '../structure.ts'
import { checksum } from './checksum.ts'
import { CHS, chsOf } from './geometry.ts'

const NONE = 0xffff_ffff_ffff_ffffn

/** An absolute offset, or undefined where all bits are set: there is nothing to point to. */
export const offset64: Field<number | undefined> = {
  size: 8,
  read: (from, at) => (from.readBigUInt64BE(at) === NONE ? undefined : u64.read(from, at)),
  write: (into, at, value) => {
    if (value === undefined) into.writeBigUInt64BE(NONE, at)
    else u64.write(into, at, value)
  },
}

export const FOOTER = structure('hard disk footer', SECTOR, {
  cookie: [0, letters(8)],
  features: [8, u32],
  version: [12, u32],
  dataOffset: [16, offset64],
  timestamp: [24, u32],
  creator: [28, letters(4)],
  creatorVersion: [32, u32],
  creatorHost: [36, letters(4)],
  originalSize: [40, u64],
  currentSize: [48, u64],
  geometry: [56, CHS],
  type: [60, u32],
  checksum: [64, u32],
  uuid: [68, bytes(16)],
  savedState: [84, u8],
  /** Not in the specification: tapdisk marks images that a toolstack is about to delete. */
  hidden: [85, u8],
  reserved: [86, bytes(426)],
})

export type Footer = ValueOf<typeof FOOTER>

export const FIXED = 2
export const DYNAMIC = 3
export const DIFFERENCING = 4

export const DISK_TYPES: Readonly<Record<number, 'fixed' | 'dynamic' | 'differencing'>> = {
  [FIXED]: 'fixed',
  [DYNAMIC]: 'dynamic',
  [DIFFERENCING]: 'differencing',
}

/** Bytes: what the sector numbers of the block table and every known reader can address. */
export const LARGEST_DISK = 2040 * GiB

/** The year 2000 in UTC, from which VHD counts seconds, in Unix time. */
const EPOCH = 946_684_800

/** A Unix time in milliseconds as VHD's seconds. */
export function vhdTime(unixMs: number): number {
  return Math.max(0, Math.floor(unixMs / 1000) - EPOCH)
}

/** The inverse of vhdTime(), to the second. */
export function unixTimeMs(seconds: number): number {
  return (seconds + EPOCH) * 1000
}

const COOKIE = 'conectix'
/** What tapdisk writes over the cookie to keep everybody from using an image. */
const POISON = 'v_poison'
const FEATURE_RESERVED = 2

export interface NewDisk {
  readonly size: number
  readonly type: number
  readonly creator: string
  readonly creatorVersion: number
  readonly uuid: Buffer
  /** As vhdTime() gives it. */
  readonly timestamp: number
  readonly dataOffset: number | undefined
}

/** A new disk's footer, without its checksum. */
export function newFooter(disk: NewDisk): Footer {
  return {
    cookie: COOKIE,
    features: FEATURE_RESERVED,
    version: 0x0001_0000,
    dataOffset: disk.dataOffset,
    timestamp: disk.timestamp,
    creator: disk.creator,
    creatorVersion: disk.creatorVersion,
    creatorHost: '\0\0\0\0',
    originalSize: disk.size,
    currentSize: disk.size,
    geometry: chsOf(disk.size),
    type: disk.type,
    checksum: 0,
    uuid: disk.uuid,
    savedState: 0,
    hidden: 0,
    reserved: Buffer.alloc(426),
  }
}

/** The footer's bytes, with the checksum that belongs to them. */
export function footerBytes(footer: Footer): Buffer {
  const image = FOOTER.bytesOf(footer)
  image.writeUInt32BE(checksum(image, FOOTER.offsetOf('checksum')), FOOTER.offsetOf('checksum'))
  return image
}

/** The footer in these 512 bytes, or why they are none. @throws Fault INVALID for numbers beyond all disks */
export function parseFooter(image: Buffer): Footer | string {
  return bytesObjection(image) ?? valueObjection(FOOTER.read(image)) ?? FOOTER.read(image)
}

function bytesObjection(image: Buffer): string | undefined {
  const cookie = image.toString('latin1', 0, 8)
  if (cookie === POISON) return 'the image was disabled by tapdisk (its footer says v_poison)'
  if (cookie !== COOKIE) return 'there is no VHD footer'
  if (!checksumFits(image)) return 'the checksum of the footer is wrong'
  return undefined
}

function valueObjection(footer: Footer): string | undefined {
  const { version, type, currentSize, dataOffset } = footer
  if (version >>> 16 !== 1) return `version ${version >>> 16}.${version & 0xffff} is not known`
  if (DISK_TYPES[type] === undefined) return `disk type ${type} is not known`
  if (currentSize === 0) return 'the disk has no size'
  if (currentSize % SECTOR !== 0) return `the size ${currentSize} is no multiple of ${SECTOR}`
  if (currentSize > LARGEST_DISK) return `the size ${currentSize} is beyond 2040 GiB`
  if (type === FIXED) return undefined
  if (dataOffset === undefined) return 'the footer points to no dynamic header'
  if (dataOffset < SECTOR || dataOffset % SECTOR !== 0)
    return `the dynamic header is at byte ${dataOffset}`
  return undefined
}

/** tapdisk 0.1 and 1.1 set the hidden mark without a new checksum: theirs may fit with the mark taken away. */
function checksumFits(image: Buffer): boolean {
  const field = FOOTER.offsetOf('checksum')
  const found = image.readUInt32BE(field)
  if (found === checksum(image, field)) return true
  const hidden = image.readUInt8(FOOTER.offsetOf('hidden'))
  const creator = image.toString('latin1', 28, 31)
  const creatorVersion = image.readUInt32BE(32)
  if (creator !== 'tap' || (creatorVersion !== 0x0001 && creatorVersion !== 0x0001_0001))
    return false
  return found === (checksum(image, field) + hidden) >>> 0
}
