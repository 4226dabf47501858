/** The first bytes of a new QCOW2 image: header, refcount table, refcount blocks, empty L1 table, in this order. */

import { Fault } from '../../core/fault.ts'
import { EXTENSION, extensionBytes } from './header-extensions.ts'
import {
  COMPRESSION_TYPE,
  COMPRESSION_TYPE_AT,
  DATA_FILE,
  EXTENDED_L2,
  HEADER_2,
  HEADER_3,
  LAZY_REFCOUNTS,
  MOST_BACKING_NAME,
  QCOW_MAGIC,
  RAW_DATA_FILE,
} from './header.ts'
import {
  l1EntriesFor,
  layoutObjection,
  layoutOf,
  MOST_REFCOUNT_TABLE_BYTES,
  mostDiskSize,
  type Layout,
} from './layout.ts'
import { writeRefcount } from './refcounts.ts'

export interface NewQcow2 {
  readonly version: 2 | 3
  /** Bytes of the disk. */
  readonly size: number
  readonly clusterSize: number
  readonly refcountBits: number
  readonly extended: boolean
  readonly lazyRefcounts: boolean
  readonly compression: 'zlib' | 'zstd'
  readonly backing: { readonly named: string; readonly format: string | undefined } | undefined
  readonly dataFile: { readonly named: string; readonly raw: boolean } | undefined
}

/** Why no such image can be made. */
export function newImageObjection(image: NewQcow2): string | undefined {
  const { backing, clusterSize, dataFile, refcountBits, size, version } = image
  const clusterBits = Math.log2(clusterSize)
  if (!Number.isInteger(clusterBits)) return `a cluster size of ${clusterSize} is no power of two`
  const reason = layoutObjection({ clusterBits, refcountBits, extended: image.extended })
  if (reason !== undefined) return reason
  if (size > mostDiskSize(layoutOf({ clusterBits, refcountBits, extended: image.extended })))
    return `a disk of ${size} bytes is too large for clusters of ${clusterSize} bytes`
  if (version === 2) {
    if (refcountBits !== 16) return 'version 2 has refcounts of 16 bits only'
    if (image.extended || image.lazyRefcounts || image.compression !== 'zlib' || dataFile)
      return 'extended L2 entries, lazy refcounts, zstd and data files need version 3'
  }
  if (dataFile?.raw === true && backing !== undefined)
    return 'a raw data file excludes a backing image'
  if (Buffer.byteLength(backing?.named ?? '') > MOST_BACKING_NAME)
    return `the name of the backing image is longer than ${MOST_BACKING_NAME} bytes`
  return undefined
}

/** @throws Fault INVALID where newImageObjection() has one, or the names do not fit into the first cluster */
export function newImageBytes(image: NewQcow2): Buffer {
  const reason = newImageObjection(image)
  if (reason !== undefined) throw new Fault('INVALID', reason)
  const { refcountBits, extended } = image
  const layout = layoutOf({ clusterBits: Math.log2(image.clusterSize), refcountBits, extended })
  const { clusterSize, refcountsPerBlock } = layout
  const l1Entries = l1EntriesFor(image.size, layout)
  const plan = tablePlan(Math.ceil((l1Entries * 8) / clusterSize), layout)
  const tableAt = clusterSize
  const blocksAt = tableAt + plan.tableClusters * clusterSize
  const l1At = blocksAt + plan.blocks * clusterSize
  const bytes = Buffer.alloc(plan.clusters * clusterSize)
  writeHeader(bytes.subarray(0, clusterSize), image, layout, {
    l1Entries,
    l1At,
    tableAt,
    tableClusters: plan.tableClusters,
  })
  for (let block = 0; block < plan.blocks; block += 1) {
    const at = blocksAt + block * clusterSize
    bytes.writeBigUInt64BE(BigInt(at), tableAt + block * 8)
    const content = bytes.subarray(at, at + clusterSize)
    const used = Math.min(plan.clusters - block * refcountsPerBlock, refcountsPerBlock)
    for (let index = 0; index < used; index += 1) writeRefcount(content, refcountBits, index, 1)
  }
  return bytes
}

interface TablePlan {
  readonly tableClusters: number
  readonly blocks: number
  readonly clusters: number
}

/** Refcount blocks count themselves, so their number is found by trying. */
function tablePlan(l1Clusters: number, { clusterSize, refcountsPerBlock }: Layout): TablePlan {
  for (let blocks = 1; ; blocks += 1) {
    const tableClusters = Math.ceil((blocks * 8) / clusterSize)
    const clusters = 1 + tableClusters + blocks + l1Clusters
    if (tableClusters * clusterSize > Math.max(MOST_REFCOUNT_TABLE_BYTES, clusterSize))
      throw new Fault('INVALID', 'the refcount table would be too large; use larger clusters')
    if (clusters <= blocks * refcountsPerBlock) return { tableClusters, blocks, clusters }
  }
}

function writeHeader(
  cluster: Buffer,
  image: NewQcow2,
  layout: Layout,
  tables: {
    readonly l1Entries: number
    readonly l1At: number
    readonly tableAt: number
    readonly tableClusters: number
  },
): void {
  const { backing, compression, dataFile, extended, lazyRefcounts, version } = image
  const headerLength = version === 2 ? HEADER_2.size : COMPRESSION_TYPE_AT + 8
  const extensions = [
    ...(backing?.format === undefined
      ? []
      : [extensionBytes(EXTENSION.backingFormat, Buffer.from(backing.format))]),
    ...(dataFile === undefined
      ? []
      : [extensionBytes(EXTENSION.dataFile, Buffer.from(dataFile.named))]),
    extensionBytes(EXTENSION.end, Buffer.alloc(0)),
  ]
  const name = Buffer.from(backing?.named ?? '')
  let at = headerLength
  const total = extensions.reduce((sum, { length }) => sum + length, headerLength)
  if (total + name.length > cluster.length)
    throw new Fault('INVALID', 'the names do not fit into the first cluster; use larger ones')
  for (const extension of extensions) {
    extension.copy(cluster, at)
    at += extension.length
  }
  name.copy(cluster, at)
  const fields = {
    magic: QCOW_MAGIC,
    version,
    backingFileOffset: backing === undefined ? 0 : at,
    backingFileSize: name.length,
    clusterBits: layout.clusterBits,
    size: image.size,
    cryptMethod: 0,
    l1Size: tables.l1Entries,
    l1TableOffset: tables.l1At,
    refcountTableOffset: tables.tableAt,
    refcountTableClusters: tables.tableClusters,
    nbSnapshots: 0,
    snapshotsOffset: 0,
  }
  if (version === 2) {
    HEADER_2.write(cluster, 0, fields)
    return
  }
  HEADER_3.write(cluster, 0, {
    ...fields,
    incompatibleFeatures:
      (dataFile === undefined ? 0n : DATA_FILE) |
      (compression === 'zlib' ? 0n : COMPRESSION_TYPE) |
      (extended ? EXTENDED_L2 : 0n),
    compatibleFeatures: lazyRefcounts ? LAZY_REFCOUNTS : 0n,
    autoclearFeatures: dataFile?.raw === true ? RAW_DATA_FILE : 0n,
    refcountOrder: Math.log2(image.refcountBits),
    headerLength,
  })
  if (compression === 'zstd') cluster.writeUInt8(1, COMPRESSION_TYPE_AT)
}
