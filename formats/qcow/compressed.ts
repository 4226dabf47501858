/**
 * Descriptors of compressed clusters (qcow2.rst, "Compressed Clusters Descriptor"): a byte offset that need not be
 * aligned, and the number of 512-byte sectors that the data reaches into beyond the first one.
 */

import { SECTOR } from '../../core/units.ts'

export interface CompressedPlace {
  /** Byte offset in the image file. */
  readonly at: number
  /** Bytes to the end of the last sector; the data may end before. */
  readonly length: number
}

const COMPRESSED_FLAG = 1n << 62n

/** @param entry the first 64 bits of an L2 entry whose bit 62 is set */
export function readCompressed(entry: bigint, clusterBits: number): CompressedPlace {
  const width = offsetWidth(clusterBits)
  const at = Number(entry & ((1n << width) - 1n))
  const sectors = Number((entry & (COMPRESSED_FLAG - 1n)) >> width)
  return { at, length: (sectors + 1) * SECTOR - (at % SECTOR) }
}

/** The entry for `length` bytes of compressed data at `at`. */
export function compressedEntry(place: CompressedPlace, clusterBits: number): bigint {
  const { at, length } = place
  const sectors = Math.floor((at + length - 1) / SECTOR) - Math.floor(at / SECTOR)
  return COMPRESSED_FLAG | (BigInt(sectors) << offsetWidth(clusterBits)) | BigInt(at)
}

/** The host clusters that the sectors of a compressed cluster lie in, the last one included. Each counts it once. */
export function hostClusters(
  { at, length }: CompressedPlace,
  clusterSize: number,
): { readonly first: number; readonly last: number } {
  return {
    first: Math.floor(at / clusterSize),
    last: Math.floor((at + length - 1) / clusterSize),
  }
}

function offsetWidth(clusterBits: number): bigint {
  return BigInt(62 - (clusterBits - 8))
}
