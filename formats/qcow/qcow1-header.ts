/**
 * QCOW version 1, as QEMU 0.8 defined it and blktap2's tapdisk has it: the header, and the arithmetic of its tables.
 * There is no specification but the programs; QEMU's block/qcow.c is the one that is followed.
 */

import { Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
import { structure, u16, u32, u64, u8 } from '../structure.ts'
import { textOf } from './header-extensions.ts'
import { QCOW_MAGIC } from './header.ts'
import { MOST_HOST_OFFSET, MOST_L1_BYTES, roundUp } from './layout.ts'

const HEADER_1 = structure('QCOW header', 48, {
  magic: [0, u32],
  version: [4, u32],
  backingFileOffset: [8, u64],
  backingFileSize: [16, u32],
  mtime: [20, u32],
  size: [24, u64],
  clusterBits: [32, u8],
  l2Bits: [33, u8],
  padding: [34, u16],
  cryptMethod: [36, u32],
  l1TableOffset: [40, u64],
})

/** What blktap2 puts behind the header of the images that it makes. */
const XEN_EXTENSION = structure('extension of tapdisk', 16, {
  magic: [0, u32],
  checksum: [4, u32],
  leastAllocation: [8, u32],
  flags: [12, u32],
})
const XEN_MAGIC = 0x5845_4efb
const L1_BIG_ENDIAN = 2

const LEAST_BITS = 9
const MOST_CLUSTER_BITS = 16
const LEAST_L2_BITS = 9 - 3
const MOST_L2_BITS = 16 - 3
const MOST_BACKING_NAME = 1023

export interface Qcow1Header {
  readonly size: number
  readonly clusterSize: number
  readonly clusterBits: number
  readonly l2Entries: number
  readonly l1Entries: number
  readonly l1At: number
  readonly backingFile: string | undefined
}

/** @param start the first bytes of the image, enough for the header and the name of the backing image */
export function parseQcow1Header(start: Buffer, fileSize: number): Qcow1Header {
  if (start.length < HEADER_1.size) throw refusal('the file ends within the header')
  const fields = HEADER_1.read(start)
  if (fields.magic !== QCOW_MAGIC || fields.version !== 1)
    throw refusal('this is no QCOW version 1 image')
  if (fields.cryptMethod !== 0) {
    throw new Fault('NOT_SUPPORTED', 'the image is encrypted with AES', {
      remedy: 'convert it: qemu-img convert -O qcow2',
    })
  }
  if (isLittleEndian(fields, start)) {
    throw new Fault('NOT_SUPPORTED', 'the L1 table has the byte order of an old tapdisk', {
      remedy: 'open the image once with a newer tapdisk, which converts it',
    })
  }
  const reason = objection(fields, start, fileSize)
  if (reason !== undefined) throw refusal(reason)
  const { backingFileOffset: at, backingFileSize: length } = fields
  return {
    size: fields.size,
    clusterSize: 2 ** fields.clusterBits,
    clusterBits: fields.clusterBits,
    l2Entries: 2 ** fields.l2Bits,
    l1Entries: l1EntriesOf(fields),
    l1At: fields.l1TableOffset,
    backingFile:
      at === 0
        ? undefined
        : textOf(start.subarray(at, at + length), 'the name of the backing image'),
  }
}

type Fields = ReturnType<typeof HEADER_1.read>

/** Early versions of tapdisk wrote the L1 table in the byte order of the machine; later ones say that they do not. */
function isLittleEndian({ l1TableOffset }: Fields, start: Buffer): boolean {
  if (l1TableOffset % 4096 !== 0 || start.length < HEADER_1.size + XEN_EXTENSION.size) return false
  const { flags, magic } = XEN_EXTENSION.read(start, HEADER_1.size)
  return magic === XEN_MAGIC && (flags & L1_BIG_ENDIAN) === 0
}

function l1EntriesOf({ size, clusterBits, l2Bits }: Fields): number {
  return Math.ceil(size / 2 ** (clusterBits + l2Bits))
}

function objection(fields: Fields, start: Buffer, fileSize: number): string | undefined {
  const { backingFileOffset, backingFileSize, clusterBits, l1TableOffset, l2Bits, size } = fields
  if (clusterBits < LEAST_BITS || clusterBits > MOST_CLUSTER_BITS)
    return `clusters of 2^${clusterBits} bytes; 512 bytes to 64 KiB are possible`
  if (l2Bits < LEAST_L2_BITS || l2Bits > MOST_L2_BITS)
    return `L2 tables of 2^${l2Bits} entries; 64 to 8192 are possible`
  if (size <= 1) return 'the disk has no size'
  if (size > MOST_HOST_OFFSET) return `a disk of ${size} bytes is too large`
  const l1Bytes = l1EntriesOf(fields) * 8
  if (l1Bytes > MOST_L1_BYTES) return `an L1 table of ${l1Bytes} bytes is too large`
  if (l1TableOffset < HEADER_1.size) return 'the L1 table overlaps the header'
  if (l1TableOffset + l1Bytes > fileSize) return 'the L1 table is beyond the end of the file'
  if (backingFileOffset === 0) return undefined
  if (backingFileSize > MOST_BACKING_NAME)
    return `the name of the backing image has ${backingFileSize} bytes`
  if (backingFileOffset < HEADER_1.size) return 'the name of the backing image overlaps the header'
  if (backingFileOffset + backingFileSize > start.length)
    return 'the name of the backing image is not at the beginning of the file'
  return undefined
}

/** Enough of the image for parseQcow1Header(), whatever is in the header. */
export const QCOW1_START = 64 * 1024

/** A new image: header, name of the backing image, empty L1 table. */
export function newQcow1Bytes(image: {
  readonly size: number
  readonly backing: string | undefined
}): Buffer {
  const name = Buffer.from(image.backing ?? '')
  if (name.length > MOST_BACKING_NAME) throw refusal('the name of the backing image is too long')
  // As QEMU chooses: over a backing image small clusters, so that little is copied.
  const clusterBits = image.backing === undefined ? 12 : 9
  const l2Bits = image.backing === undefined ? 9 : 12
  const l1At = roundUp(HEADER_1.size + name.length, 8)
  const fields = {
    magic: QCOW_MAGIC,
    version: 1,
    backingFileOffset: name.length === 0 ? 0 : HEADER_1.size,
    backingFileSize: name.length,
    mtime: 0,
    size: image.size,
    clusterBits,
    l2Bits,
    padding: 0,
    cryptMethod: 0,
    l1TableOffset: l1At,
  }
  const l1Bytes = l1EntriesOf(fields) * 8
  if (l1Bytes > MOST_L1_BYTES || image.size <= 1 || image.size % SECTOR !== 0)
    throw refusal(`a disk of ${image.size} bytes cannot be a version 1 image`)
  const bytes = Buffer.alloc(roundUp(l1At + l1Bytes, SECTOR))
  HEADER_1.write(bytes, 0, fields)
  name.copy(bytes, HEADER_1.size)
  return bytes
}

function refusal(reason: string): Fault {
  return new Fault('INVALID', reason, {
    remedy: 'name an intact QCOW image, or restore it from a copy',
  })
}
