/**
 * Changes of single header fields, each one atomic: the first sector is written as a whole, with everything in it that
 * is not understood kept as it is.
 */

import { SECTOR } from '../../core/units.ts'
import { HEADER_3 } from '../../formats/qcow/header.ts'
import type { HostFile } from './host-file.ts'

export type HeaderPatch = Partial<{
  readonly size: number
  readonly l1: { readonly at: number; readonly entries: number }
  readonly refcountTable: { readonly at: number; readonly clusters: number }
  readonly snapshots: { readonly at: number; readonly count: number }
  readonly incompatible: bigint
  readonly autoclear: bigint
}>

export class HeaderSector {
  readonly #file: HostFile
  readonly #bytes: Buffer

  /** @param start the first bytes of the image, a sector or more */
  constructor(file: HostFile, start: Buffer) {
    this.#file = file
    this.#bytes = Buffer.alloc(SECTOR)
    start.copy(this.#bytes)
  }

  /** Writes the fields and waits until they are on stable storage. What was written before is so as well then. */
  async write(patch: HeaderPatch): Promise<void> {
    await this.#file.flush()
    const bytes = Buffer.from(this.#bytes)
    const at = (field: Parameters<typeof HEADER_3.offsetOf>[0]): number => HEADER_3.offsetOf(field)
    const put64 = (value: number, offset: number): void =>
      void bytes.writeBigUInt64BE(BigInt(value), offset)
    if (patch.size !== undefined) put64(patch.size, at('size'))
    if (patch.l1 !== undefined) {
      put64(patch.l1.at, at('l1TableOffset'))
      bytes.writeUInt32BE(patch.l1.entries, at('l1Size'))
    }
    if (patch.refcountTable !== undefined) {
      put64(patch.refcountTable.at, at('refcountTableOffset'))
      bytes.writeUInt32BE(patch.refcountTable.clusters, at('refcountTableClusters'))
    }
    if (patch.snapshots !== undefined) {
      put64(patch.snapshots.at, at('snapshotsOffset'))
      bytes.writeUInt32BE(patch.snapshots.count, at('nbSnapshots'))
    }
    if (patch.incompatible !== undefined)
      bytes.writeBigUInt64BE(patch.incompatible, at('incompatibleFeatures'))
    if (patch.autoclear !== undefined)
      bytes.writeBigUInt64BE(patch.autoclear, at('autoclearFeatures'))
    await this.#file.write(bytes, 0)
    await this.#file.flush()
    bytes.copy(this.#bytes)
  }
}
