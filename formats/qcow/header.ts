/**
 * The header of QCOW2 images, versions 2 and 3, with its extensions (qcow2.rst, "Header" and "Header extensions").
 *
 * Invariant: whatever parseHeader() returns, every table that the header names lies within the file, apart from the
 * others, and within the limits that bound the memory it asks for.
 */

import { Fault } from '../../core/fault.ts'
import { structure, u32, u64, word64, type ValueOf } from '../structure.ts'
import { EXTENSION, parseExtensions, textOf, type HeaderExtension } from './header-extensions.ts'
import {
  l1EntriesFor,
  layoutObjection,
  layoutOf,
  LEAST_CLUSTER_BITS,
  MOST_CLUSTER_BITS,
  MOST_L1_BYTES,
  MOST_REFCOUNT_TABLE_BYTES,
  mostDiskSize,
  roundUp,
  type Layout,
} from './layout.ts'

/** `QFI\xfb` */
export const QCOW_MAGIC = 0x5146_49fb

const COMMON = {
  magic: [0, u32],
  version: [4, u32],
  backingFileOffset: [8, u64],
  backingFileSize: [16, u32],
  clusterBits: [20, u32],
  size: [24, u64],
  cryptMethod: [32, u32],
  l1Size: [36, u32],
  l1TableOffset: [40, u64],
  refcountTableOffset: [48, u64],
  refcountTableClusters: [56, u32],
  nbSnapshots: [60, u32],
  snapshotsOffset: [64, u64],
} as const

export const HEADER_2 = structure('QCOW2 header', 72, COMMON)

export const HEADER_3 = structure('QCOW2 header', 104, {
  ...COMMON,
  incompatibleFeatures: [72, word64],
  compatibleFeatures: [80, word64],
  autoclearFeatures: [88, word64],
  refcountOrder: [96, u32],
  headerLength: [100, u32],
})

type Fields = ValueOf<typeof HEADER_3>

/** incompatible_features */
export const DIRTY = 1n << 0n
export const CORRUPT = 1n << 1n
export const DATA_FILE = 1n << 2n
export const COMPRESSION_TYPE = 1n << 3n
export const EXTENDED_L2 = 1n << 4n
const KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2
/** compatible_features */
export const LAZY_REFCOUNTS = 1n << 0n
/** autoclear_features */
export const BITMAPS = 1n << 0n
export const RAW_DATA_FILE = 1n << 1n
export const KNOWN_AUTOCLEAR = BITMAPS | RAW_DATA_FILE

/** Byte 104, where the header is long enough (qcow2.rst, "Additional fields"). */
export const COMPRESSION_TYPE_AT = 104
export const MOST_BACKING_NAME = 1023
const MOST_SNAPSHOTS = 65_536

export interface Qcow2Header {
  readonly version: 2 | 3
  readonly layout: Layout
  /** Bytes of the disk. */
  readonly size: number
  readonly l1Entries: number
  readonly l1At: number
  readonly refcountTableAt: number
  readonly refcountTableClusters: number
  readonly snapshotCount: number
  readonly snapshotsAt: number
  readonly incompatible: bigint
  readonly compatible: bigint
  readonly autoclear: bigint
  readonly headerLength: number
  readonly compression: 'zlib' | 'zstd'
  readonly backingFile: string | undefined
  readonly backingFormat: string | undefined
  readonly dataFile: string | undefined
  readonly extensions: readonly HeaderExtension[]
}

/**
 * The size of an image's clusters, so that the whole first one can be read.
 * @param start the first 24 bytes or more
 * @throws Fault INVALID when this is no QCOW2 image
 */
export function clusterSizeOf(start: Buffer): number {
  const short = start.length < 24
  if (short || start.readUInt32BE(0) !== QCOW_MAGIC) throw refusal('this is no QCOW image')
  const version = start.readUInt32BE(4)
  if (version !== 2 && version !== 3) throw refusal(`QCOW version ${version} is unknown`)
  const bits = start.readUInt32BE(20)
  if (bits < LEAST_CLUSTER_BITS || bits > MOST_CLUSTER_BITS)
    throw refusal(`clusters of 2^${bits} bytes; 512 bytes to 2 MiB are possible`)
  return 2 ** bits
}

/**
 * @param cluster the first cluster of the image, or all of it where it is shorter
 * @param fileSize bytes of the image file
 * @throws Fault INVALID or NOT_SUPPORTED that says why this image cannot be used
 */
export function parseHeader(cluster: Buffer, fileSize: number): Qcow2Header {
  clusterSizeOf(cluster)
  const version = cluster.readUInt32BE(4)
  const structureOf = version === 2 ? HEADER_2 : HEADER_3
  if (cluster.length < structureOf.size) throw refusal('the file ends within the header')
  const fields: Fields =
    version === 2 ? { ...HEADER_2.read(cluster), ...VERSION_2 } : HEADER_3.read(cluster)
  const unsupported = unsupportedReason(fields, cluster)
  if (unsupported !== undefined) throw new Fault('NOT_SUPPORTED', unsupported)
  const layout = layoutOf(parametersOf(fields))
  const reason =
    layoutObjection(parametersOf(fields)) ??
    lengthObjection(fields, cluster) ??
    tableObjection(fields, layout, fileSize) ??
    overlapObjection(fields, layout)
  if (reason !== undefined) throw refusal(reason)
  return describe(fields, layout, cluster)
}

/** The fields that version 2 does not have, with the values that the specification assumes. */
const VERSION_2 = {
  incompatibleFeatures: 0n,
  compatibleFeatures: 0n,
  autoclearFeatures: 0n,
  refcountOrder: 4,
  headerLength: HEADER_2.size,
} as const

function parametersOf(fields: Fields): {
  clusterBits: number
  refcountBits: number
  extended: boolean
} {
  const refcountBits = 2 ** Math.min(fields.refcountOrder, 7)
  const extended = (fields.incompatibleFeatures & EXTENDED_L2) !== 0n
  return { clusterBits: fields.clusterBits, refcountBits, extended }
}

/** What would need an ability that colotap does not have. */
function unsupportedReason(fields: Fields, cluster: Buffer): string | undefined {
  if (fields.cryptMethod === 1)
    return 'the image is encrypted with AES; convert it: qemu-img convert -O qcow2'
  if (fields.cryptMethod === 2)
    return 'the image is encrypted with LUKS; decrypt it with qemu-img convert, or encrypt below colotap'
  if (fields.cryptMethod !== 0) return `encryption method ${fields.cryptMethod} is unknown`
  const unknown = fields.incompatibleFeatures & ~KNOWN_INCOMPATIBLE
  if (unknown !== 0n)
    return `the image uses unknown features: ${featureNames(unknown, fields, cluster)}`
  return undefined
}

function lengthObjection(fields: Fields, cluster: Buffer): string | undefined {
  const { headerLength, incompatibleFeatures } = fields
  if (fields.version === 3) {
    if (headerLength < HEADER_3.size)
      return `a header length of ${headerLength} bytes is too little`
    if (headerLength % 8 !== 0) return `a header length of ${headerLength} is no multiple of 8`
  }
  if (headerLength > cluster.length) return 'the header is longer than the first cluster'
  const type = compressionType(fields, cluster)
  const announced = (incompatibleFeatures & COMPRESSION_TYPE) !== 0n
  if (announced !== (type !== 0)) return `compression type ${type} contradicts the feature bits`
  if (type > 1) return `compression type ${type} is unknown`
  if (fields.backingFileOffset !== 0) {
    const { backingFileOffset: at, backingFileSize: length } = fields
    if (length > MOST_BACKING_NAME) return `the name of the backing image has ${length} bytes`
    if (at + length > cluster.length)
      return 'the name of the backing image is not in the first cluster'
    if (at < headerLength) return 'the name of the backing image overlaps the header'
  }
  return undefined
}

function tableObjection(fields: Fields, layout: Layout, fileSize: number): string | undefined {
  const { clusterSize } = layout
  const end = roundUp(fileSize, clusterSize)
  const aligned = (at: number): boolean => at % clusterSize === 0
  if (fields.size > mostDiskSize(layout)) return `a disk of ${fields.size} bytes is too large`
  if (fields.l1Size * 8 > MOST_L1_BYTES)
    return `an L1 table of ${fields.l1Size} entries is too large`
  if (fields.l1Size < l1EntriesFor(fields.size, layout))
    return `an L1 table of ${fields.l1Size} entries is too small for a disk of ${fields.size} bytes`
  if (!aligned(fields.l1TableOffset)) return 'the L1 table begins at no cluster boundary'
  if (fields.l1TableOffset + fields.l1Size * 8 > end)
    return 'the L1 table is beyond the end of the file'
  const tableBytes = fields.refcountTableClusters * clusterSize
  if (fields.refcountTableClusters === 0) return 'there is no refcount table'
  if (tableBytes > Math.max(MOST_REFCOUNT_TABLE_BYTES, clusterSize))
    return `a refcount table of ${tableBytes} bytes is too large`
  if (!aligned(fields.refcountTableOffset))
    return 'the refcount table begins at no cluster boundary'
  if (fields.refcountTableOffset + tableBytes > end)
    return 'the refcount table is beyond the end of the file'
  if (fields.nbSnapshots > MOST_SNAPSHOTS) return `${fields.nbSnapshots} snapshots are too many`
  if (fields.nbSnapshots > 0) {
    if (!aligned(fields.snapshotsOffset)) return 'the snapshot table begins at no cluster boundary'
    if (fields.snapshotsOffset >= fileSize)
      return 'the snapshot table is beyond the end of the file'
  }
  return undefined
}

function overlapObjection(fields: Fields, { clusterSize }: Layout): string | undefined {
  const areas = [
    { name: 'the header', from: 0, to: clusterSize },
    {
      name: 'the L1 table',
      from: fields.l1TableOffset,
      to: roundUp(fields.l1TableOffset + fields.l1Size * 8, clusterSize),
    },
    {
      name: 'the refcount table',
      from: fields.refcountTableOffset,
      to: fields.refcountTableOffset + fields.refcountTableClusters * clusterSize,
    },
    {
      name: 'the snapshot table',
      from: fields.snapshotsOffset,
      to: fields.nbSnapshots === 0 ? 0 : fields.snapshotsOffset + clusterSize,
    },
  ].filter(({ from, to }) => to > from)
  for (const [index, area] of areas.entries()) {
    const other = areas.slice(0, index).find(({ from, to }) => area.from < to && from < area.to)
    if (other !== undefined) return `${area.name} overlaps ${other.name}`
  }
  return undefined
}

function describe(fields: Fields, layout: Layout, cluster: Buffer): Qcow2Header {
  const hasBacking = fields.backingFileOffset !== 0
  const extensions = parseExtensions(
    cluster.subarray(
      fields.headerLength,
      hasBacking ? fields.backingFileOffset : Math.min(layout.clusterSize, cluster.length),
    ),
    fields.headerLength,
  )
  const find = (type: number): Buffer | undefined =>
    extensions.find((extension) => extension.type === type)?.data
  const bitmaps = (fields.autoclearFeatures & BITMAPS) !== 0n
  if (bitmaps && find(EXTENSION.bitmaps) === undefined)
    throw refusal('bitmaps are announced, but not there')
  const rawData = (fields.autoclearFeatures & RAW_DATA_FILE) !== 0n
  const hasData = (fields.incompatibleFeatures & DATA_FILE) !== 0n
  if (rawData && !hasData) throw refusal('a raw data file is announced, but no data file')
  if (rawData && hasBacking) throw refusal('a raw data file excludes a backing image')
  if (hasData && fields.nbSnapshots > 0) throw refusal('a data file excludes snapshots')
  const { backingFileOffset: at, backingFileSize: length } = fields
  return {
    version: fields.version === 2 ? 2 : 3,
    layout,
    size: fields.size,
    l1Entries: fields.l1Size,
    l1At: fields.l1TableOffset,
    refcountTableAt: fields.refcountTableOffset,
    refcountTableClusters: fields.refcountTableClusters,
    snapshotCount: fields.nbSnapshots,
    snapshotsAt: fields.snapshotsOffset,
    incompatible: fields.incompatibleFeatures,
    compatible: fields.compatibleFeatures,
    autoclear: fields.autoclearFeatures,
    headerLength: fields.headerLength,
    compression: compressionType(fields, cluster) === 1 ? 'zstd' : 'zlib',
    backingFile: hasBacking
      ? textOf(cluster.subarray(at, at + length), 'the name of the backing image')
      : undefined,
    backingFormat: optionalText(find(EXTENSION.backingFormat), 'the format of the backing image'),
    dataFile: hasData
      ? (optionalText(find(EXTENSION.dataFile), 'the name of the data file') ?? '')
      : undefined,
    extensions,
  }
}

function optionalText(data: Buffer | undefined, what: string): string | undefined {
  return data === undefined ? undefined : textOf(data, what)
}

function compressionType({ headerLength }: Fields, cluster: Buffer): number {
  const present = headerLength > COMPRESSION_TYPE_AT && cluster.length > COMPRESSION_TYPE_AT
  return present ? cluster.readUInt8(COMPRESSION_TYPE_AT) : 0
}

/** The names that the image itself gives to its features (qcow2.rst, "Feature name table"). */
function featureNames(bits: bigint, { headerLength }: Fields, cluster: Buffer): string {
  const names: string[] = []
  let table: Buffer | undefined
  try {
    const area = cluster.subarray(Math.min(headerLength, cluster.length))
    table = parseExtensions(area, headerLength).find(
      ({ type }) => type === EXTENSION.featureNames,
    )?.data
  } catch {
    table = undefined // An unreadable table names nothing; the bits are named by number.
  }
  for (let bit = 0; bit < 64; bit += 1) {
    if ((bits & (1n << BigInt(bit))) === 0n) continue
    let name = `bit ${bit}`
    for (let at = 0; table !== undefined && at + 48 <= table.length; at += 48) {
      if (table[at] !== 0 || table[at + 1] !== bit) continue
      const text = table.toString('latin1', at + 2, at + 48).replace(/\0.*$/s, '')
      if (/^[\x20-\x7e]+$/.test(text)) name = `${text} (bit ${bit})`
    }
    names.push(name)
  }
  return names.join(', ')
}

function refusal(reason: string): Fault {
  return new Fault('INVALID', reason, {
    remedy: 'name an intact QCOW image, or restore it from a copy',
  })
}
