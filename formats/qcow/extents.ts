/** Guest ranges that an L2 table maps in one piece: what a request can be served by with one step. */

import { NOWHERE, type EntryFormat } from './entry-format.ts'

/** Not in this image: the backing image has it, or it is zero. */
export const BACKING = 0
/** In a host cluster of its own, which may be written in place. */
export const DATA = 1
/** In a host cluster that a snapshot uses as well. */
export const SHARED = 2
/** Zero, without a place in the file. */
export const ZERO = 3
/** Zero, and a host cluster is kept for it. */
export const ZERO_KEPT = 4
/** Within one compressed cluster. */
export const COMPRESSED = 5
/** Within one cluster whose entry cannot be used. */
export const BAD = 6

/** Looks for extents without allocating; the fields hold what the last find() found. */
export class ExtentFinder {
  readonly #format: EntryFormat
  kind = BACKING
  /** Bytes. */
  length = 0
  /** DATA and SHARED: the byte offset of the extent in the file that holds guest clusters. */
  host = NOWHERE

  constructor(format: EntryFormat) {
    this.#format = format
  }

  /**
   * @param bad the entries of `table` that cannot be used
   * @param from bytes from the first one that `table` maps
   * @param limit the most bytes of interest, at least one
   */
  find(
    table: Buffer,
    bad: ReadonlyMap<number, string> | undefined,
    from: number,
    limit: number,
  ): void {
    const { clusterSize, l2Entries } = this.#format.layout
    let index = Math.floor(from / clusterSize)
    const within = from - index * clusterSize
    this.#begin(table, bad, index, within)
    while (this.length < limit && (within + this.length) % clusterSize === 0) {
      index += 1
      if (index >= l2Entries || bad?.has(index) === true) break
      if (!this.#continue(table, index)) break
    }
    if (this.length > limit) this.length = limit
  }

  #begin(
    table: Buffer,
    bad: ReadonlyMap<number, string> | undefined,
    index: number,
    within: number,
  ): void {
    const format = this.#format
    const { clusterSize, subclusterSize } = format.layout
    this.host = NOWHERE
    if (bad?.has(index) === true) {
      this.kind = BAD
      this.length = clusterSize - within
      return
    }
    format.look(table, index)
    const part = Math.floor(within / subclusterSize)
    this.kind = this.#kindOf(part)
    if (this.kind === DATA || this.kind === SHARED) this.host = format.host + within
    this.length = this.#partsEnd(part) * subclusterSize - within
  }

  /** Takes what follows in entry `index` into the extent; false where the extent ends before it. */
  #continue(table: Buffer, index: number): boolean {
    const format = this.#format
    if (this.kind === COMPRESSED || this.kind === BAD) return false
    format.look(table, index)
    if (this.#kindOf(0) !== this.kind) return false
    if (this.host !== NOWHERE && format.host !== this.host + this.length) return false
    this.length += this.#partsEnd(0) * format.layout.subclusterSize
    return true
  }

  /** The first part after `part` that is of another kind, of the cluster that was looked at last. */
  #partsEnd(part: number): number {
    const { subclusters } = this.#format.layout
    let end = part + 1
    while (end < subclusters && this.#kindOf(end) === this.kind) end += 1
    return end
  }

  #kindOf(part: number): number {
    const { allocated, compressed, copied, dataFile, host, zeroes } = this.#format
    if (compressed) return COMPRESSED
    const bit = 1 << part
    if ((allocated & bit) !== 0) return copied || dataFile ? DATA : SHARED
    if ((zeroes & bit) !== 0) return host === NOWHERE ? ZERO : ZERO_KEPT
    return BACKING
  }
}
