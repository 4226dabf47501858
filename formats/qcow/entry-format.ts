/**
 * The entries of L1 and L2 tables, as the code that maps guest clusters sees them, whatever the version of the image.
 *
 * A cluster is seen as `subclusters` parts, each with a bit in `allocated` and one in `zeroes`. A part whose bits are both
 * clear is read from the backing image.
 *
 * Invariant: `allocated` and `zeroes` have no bit in common.
 */

import type { CompressedPlace } from './compressed.ts'
import type { MappingLayout } from './layout.ts'

/** What an entry that maps nothing has as its host offset. */
export const NOWHERE = -1

/** Reads and writes the entries of one image; look() decodes an entry into the fields of this object. */
export abstract class EntryFormat {
  abstract readonly layout: MappingLayout
  /** Whether an entry can say that its cluster is zero. */
  abstract readonly zeroFlag: boolean
  /** Guest clusters are in a file of their own, at their own offsets; offset 0 can be meant there. */
  abstract readonly dataFile: boolean
  /** All parts of a cluster. */
  abstract readonly all: number

  // What the last look() found.
  compressed = false
  /** The host cluster is this entry's alone. */
  copied = false
  /** Byte offset of the host cluster, or NOWHERE. */
  host = NOWHERE
  allocated = 0
  zeroes = 0

  /** Decodes entry `index` of an L2 table into the fields of this object. */
  abstract look(table: Buffer, index: number): void

  /** Where the compressed cluster of entry `index` is. */
  abstract compressedPlace(table: Buffer, index: number): CompressedPlace

  /** Writes a cluster: its host offset or NOWHERE, and the state of its parts. */
  abstract put(
    table: Buffer,
    index: number,
    host: number,
    allocated: number,
    zeroes: number,
    copied?: boolean,
  ): void

  /**
   * Why entry `index` cannot be used, whatever else the image contains.
   * @param fileSize bytes of the file that holds guest clusters
   * @param guestAt the guest offset that the entry maps
   */
  abstract objection(
    table: Buffer,
    index: number,
    fileSize: number,
    guestAt: number,
  ): string | undefined

  /** The offset of an L2 table, or 0 where there is none. */
  abstract tableAt(l1: Buffer, index: number): number

  /** Whether an L2 table belongs to this L1 table alone and may be changed in place. */
  abstract owns(l1: Buffer, index: number): boolean

  /** Names an L2 table that is referred to once. */
  abstract name(l1: Buffer, index: number, at: number): void
}
