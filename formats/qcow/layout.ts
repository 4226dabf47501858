/**
 * The arithmetic of one QCOW2 image: what follows from its cluster size, its refcount width and its entries.
 *
 * Invariant: every number here is a safe integer for every layout that layoutObjection() lets pass.
 */

import { KiB, MiB } from '../../core/units.ts'

export const LEAST_CLUSTER_BITS = 9
export const MOST_CLUSTER_BITS = 21
/** With extended L2 entries a subcluster is at least a sector (qcow2.rst, "Header", cluster_bits). */
const LEAST_EXTENDED_CLUSTER_BITS = 14
/** QEMU's limits, which bound the memory that an image can ask for (qcow2.rst, "Header" and "Host cluster management"). */
export const MOST_L1_BYTES = 32 * MiB
export const MOST_REFCOUNT_TABLE_BYTES = 8 * MiB
/** Bits 9 to 55 of an entry are an offset. */
export const MOST_HOST_OFFSET = 2 ** 53 - 2 ** MOST_CLUSTER_BITS

export interface LayoutParameters {
  readonly clusterBits: number
  readonly refcountBits: number
  readonly extended: boolean
}

/** What the mapping of guest clusters needs to know; QCOW 1 has that much in common. */
export interface MappingLayout {
  readonly clusterBits: number
  readonly clusterSize: number
  /** Parts of a cluster with a state of their own: 32 with extended L2 entries, otherwise 1. */
  readonly subclusters: number
  readonly subclusterSize: number
  readonly l2EntryBytes: number
  readonly l2Entries: number
  /** Bytes of an L2 table. */
  readonly l2Bytes: number
  /** Guest bytes that one L2 table maps. */
  readonly l2Span: number
}

export interface Layout extends LayoutParameters, MappingLayout {
  /** Clusters that one refcount block describes. */
  readonly refcountsPerBlock: number
}

export function layoutOf(parameters: LayoutParameters): Layout {
  const { clusterBits, refcountBits, extended } = parameters
  const clusterSize = 2 ** clusterBits
  const subclusters = extended ? 32 : 1
  const l2EntryBytes = extended ? 16 : 8
  const l2Entries = clusterSize / l2EntryBytes
  return {
    ...parameters,
    clusterSize,
    subclusters,
    subclusterSize: clusterSize / subclusters,
    l2EntryBytes,
    l2Entries,
    l2Bytes: clusterSize,
    l2Span: l2Entries * clusterSize,
    refcountsPerBlock: (clusterSize * 8) / refcountBits,
  }
}

/** Why there is no such layout. */
export function layoutObjection(parameters: LayoutParameters): string | undefined {
  const { clusterBits, refcountBits, extended } = parameters
  if (clusterBits < LEAST_CLUSTER_BITS || clusterBits > MOST_CLUSTER_BITS)
    return `clusters of 2^${clusterBits} bytes; 512 bytes to 2 MiB are possible`
  if (extended && clusterBits < LEAST_EXTENDED_CLUSTER_BITS)
    return `extended L2 entries need clusters of at least ${2 ** LEAST_EXTENDED_CLUSTER_BITS / KiB} KiB`
  if (![1, 2, 4, 8, 16, 32, 64].includes(refcountBits))
    return `refcounts of ${refcountBits} bits; 1 to 64 in powers of two are possible`
  return undefined
}

/** L1 entries that a disk of `size` bytes needs. */
export function l1EntriesFor(size: number, layout: Layout): number {
  return Math.ceil(size / layout.l2Span)
}

/** The largest disk that an L1 table can map (QEMU's limit on that table). */
export function mostDiskSize(layout: Layout): number {
  return Math.min((MOST_L1_BYTES / 8) * layout.l2Span, MOST_HOST_OFFSET)
}

export function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit
}

export function roundDown(value: number, unit: number): number {
  return Math.floor(value / unit) * unit
}
