/**
 * Where the metadata of an image is, by host cluster: no guest data may be mapped there, and nothing be allocated there.
 *
 * What was there when the image was opened is one sorted array, so that even an absurdly full L1 table costs no more
 * memory than the table itself.
 */

import { roundDown } from '../../formats/qcow/layout.ts'

export class MetadataPlaces {
  readonly #clusterSize: number
  #found: Float64Array
  readonly #added = new Set<number>()
  readonly #removed = new Set<number>()
  readonly #pinned: ReadonlySet<number>

  /**
   * @param found byte offsets of clusters, in any order
   * @param pinned those of them that stay metadata whatever becomes of the active tables: snapshots use them
   */
  constructor(clusterSize: number, found: Float64Array, pinned: ReadonlySet<number> = new Set()) {
    this.#clusterSize = clusterSize
    this.#found = found.sort()
    this.#pinned = pinned
  }

  /** A cluster that was found more than once: tables overlap. */
  duplicate(): number | undefined {
    for (let index = 1; index < this.#found.length; index += 1)
      if (this.#found[index] === this.#found[index - 1]) return this.#found[index]
    return undefined
  }

  /** Whether the cluster at byte offset `at` holds metadata. */
  has(at: number): boolean {
    if (this.#added.has(at)) return true
    let low = 0
    let high = this.#found.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#found[middle] ?? 0) < at) low = middle + 1
      else high = middle
    }
    return this.#found[low] === at && !this.#removed.has(at)
  }

  /** Whether any cluster of the range holds metadata. */
  hasAny(at: number, length: number): boolean {
    for (
      let cluster = roundDown(at, this.#clusterSize);
      cluster < at + length;
      cluster += this.#clusterSize
    )
      if (this.has(cluster)) return true
    return false
  }

  add(at: number, length = this.#clusterSize): void {
    for (let cluster = at; cluster < at + length; cluster += this.#clusterSize) {
      this.#removed.delete(cluster)
      this.#added.add(cluster)
    }
  }

  remove(at: number, length = this.#clusterSize): void {
    for (let cluster = at; cluster < at + length; cluster += this.#clusterSize) {
      if (this.#pinned.has(cluster)) continue
      this.#added.delete(cluster)
      this.#removed.add(cluster)
    }
  }
}
