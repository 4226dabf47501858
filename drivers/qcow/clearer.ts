/**
 * Zeroing and trimming: whole clusters and subclusters lose their content by a change of their entries, the rest is
 * overwritten with zeroes (zero) or kept (trim).
 *
 * Invariants:
 *  - What was trimmed never shows the backing image: version 2, which has no zero flag, keeps its content there.
 *  - Entries change under the writer's lock on their guest clusters.
 */

import { FAST_ZERO, NO_HOLE, type RequestFlags } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { MiB } from '../../core/units.ts'
import { BACKING, BAD, ExtentFinder, ZERO } from '../../formats/qcow/extents.ts'
import { NOWHERE } from '../../formats/qcow/entry-format.ts'
import { roundDown, roundUp } from '../../formats/qcow/layout.ts'
import type { L2Table } from './mapping-tables.ts'
import type { Metadata } from './metadata.ts'
import { backedBytes, breakDown, type QcowImage } from './qcow-image.ts'
import { parts, type Writer } from './writer.ts'

const ZEROES = Buffer.from(new SharedArrayBuffer(1 * MiB))

interface Manner {
  readonly trim: boolean
  /** Clusters keep their place in the file. */
  readonly keep: boolean
}

export class Clearer {
  readonly #image: QcowImage
  readonly #metadata: Metadata
  readonly #writer: Writer
  readonly #finder: ExtentFinder
  readonly #span: number
  readonly #clusterSize: number

  constructor(image: QcowImage, metadata: Metadata, writer: Writer) {
    this.#image = image
    this.#metadata = metadata
    this.#writer = writer
    this.#finder = new ExtentFinder(image.format)
    this.#span = image.format.layout.l2Span
    this.#clusterSize = image.format.layout.clusterSize
  }

  async zero(at: number, length: number, flags: RequestFlags): Promise<void> {
    const keep = (flags & NO_HOLE) !== 0 || !this.#image.unmap
    if (this.#image.rawData) return this.#zeroDataFile(at, length, keep)
    const { start, end } = this.#whole(at, length)
    const stop = at + length
    if (start >= end) return this.#overwrite(at, stop, flags)
    await this.#overwrite(at, start, flags)
    await this.#overwrite(Math.min(end, stop), stop, flags)
    await this.#clear(start, end, { trim: false, keep })
  }

  async trim(at: number, length: number): Promise<void> {
    if (!this.#image.unmap) return
    if (this.#image.rawData) return this.#zeroDataFile(at, length, false)
    const { start, end } = this.#whole(at, length)
    if (start < end) await this.#clear(start, end, { trim: true, keep: false })
  }

  /** What of the range can be cleared by its entries; the end of the disk counts as the end of its cluster. */
  #whole(at: number, length: number): { readonly start: number; readonly end: number } {
    const { subclusterSize } = this.#image.format.layout
    const stop = at + length
    const end =
      stop === this.#image.size ? roundUp(stop, subclusterSize) : roundDown(stop, subclusterSize)
    return { start: roundUp(at, subclusterSize), end }
  }

  async #zeroDataFile(at: number, length: number, keep: boolean): Promise<void> {
    const { data } = this.#image
    await data.ensure(at + length)
    await data.device.zero(at, length, keep ? NO_HOLE : 0)
  }

  /** Makes [at, stop) zero by writing, where it is not zero already. */
  async #overwrite(at: number, stop: number, flags: RequestFlags): Promise<void> {
    for (let position = at; position < stop;) {
      const end = Math.min(
        stop,
        roundDown(position, this.#clusterSize) + Math.max(this.#clusterSize, ZEROES.length),
        roundDown(position, this.#span) + this.#span,
      )
      if (!(await this.#readsZero(position, end - position))) {
        if ((flags & FAST_ZERO) !== 0) {
          throw new Fault('NOT_SUPPORTED', 'parts of clusters are zeroed by writing them', {
            where: `${this.#image.path}, byte ${position} of the disk`,
          })
        }
        const length = Math.min(end - position, ZEROES.length)
        await this.#writer.write(ZEROES.subarray(0, length), position)
        position += length
      } else position = end
    }
  }

  /** Whether a range within one table's reach reads as zeroes. */
  async #readsZero(at: number, length: number): Promise<boolean> {
    const index = Math.floor(at / this.#span)
    const { mapping } = this.#image
    for (;;) {
      if (!mapping.exists(index)) return backedBytes(this.#image, at, length) === 0
      const table = mapping.cached(index)
      if (table !== undefined) return this.#writer.readsZero(table, at, length)
      await mapping.load(index)
    }
  }

  /** @param start, end boundaries of subclusters; `end` may be beyond the end of the disk */
  async #clear(start: number, end: number, manner: Manner): Promise<void> {
    for (let position = start; position < end;) {
      const reach = roundDown(position, this.#span) + this.#span
      const stop = Math.min(end, reach)
      await this.#clearReach(position, stop, manner)
      position = stop
      if (this.#metadata.pressed) await this.#metadata.relieve()
    }
  }

  /** Clears a range within one table's reach. */
  async #clearReach(start: number, stop: number, manner: Manner): Promise<void> {
    const from = roundDown(start, this.#clusterSize)
    const to = roundUp(stop, this.#clusterSize)
    const ticket = await this.#writer.changing.acquire(from, to - from)
    let left: readonly Range[]
    try {
      if (!(await this.#needsChange(start, stop))) return
      // Holes come before the entries say zero: what is trimmed may be either until the next flush.
      if (this.#image.format.dataFile && !manner.keep) await this.#punchDataFile(start, stop)
      left = await this.#clearEntries(start, stop, manner)
    } finally {
      this.#writer.changing.release(ticket)
    }
    if (!manner.trim)
      for (const { at, end } of left) await this.#overwrite(at, Math.min(end, this.#image.size), 0)
  }

  /** Whether anything in the range is not zero without a place already. */
  async #needsChange(start: number, stop: number): Promise<boolean> {
    const index = Math.floor(start / this.#span)
    const { mapping } = this.#image
    while (mapping.exists(index)) {
      const table = mapping.cached(index)
      if (table === undefined) {
        await mapping.load(index)
        continue
      }
      for (let at = start; at < stop; at += this.#finder.length) {
        this.#finder.find(table.bytes, table.bad, at % this.#span, stop - at)
        const { kind, length } = this.#finder
        if (kind === ZERO) continue
        if (kind !== BACKING || backedBytes(this.#image, at, length) > 0) return true
      }
      return false
    }
    return backedBytes(this.#image, start, stop - start) > 0
  }

  /** Changes the entries in one turn; gives what cannot be cleared that way. */
  async #clearEntries(start: number, stop: number, manner: Manner): Promise<Range[]> {
    const index = Math.floor(start / this.#span)
    const { mapping } = this.#image
    let table = mapping.owned(index)
    while (table === undefined) {
      await mapping.own(index)
      table = mapping.owned(index)
    }
    const left: Range[] = []
    for (let at = start; at < stop;) {
      const end = Math.min(stop, roundDown(at, this.#clusterSize) + this.#clusterSize)
      if (!this.#clearCluster(table, at, end, manner)) left.push({ at, end })
      at = end
    }
    return left
  }

  /** Clears [at, end) within a cluster; false where its entry cannot say that. */
  #clearCluster(table: L2Table, at: number, end: number, { keep }: Manner): boolean {
    const { format, mapping } = this.#image
    const { subclusterSize } = format.layout
    const entry = Math.floor((at % this.#span) / this.#clusterSize)
    this.#finder.find(table.bytes, table.bad, at % this.#span, 1)
    if (this.#finder.kind === BAD)
      throw breakDown(this.#image, `L2 table ${table.index}: ${table.bad?.get(entry) ?? ''}`)
    format.look(table.bytes, entry)
    const firstPart = Math.floor((at % this.#clusterSize) / subclusterSize)
    const bits = parts(firstPart, firstPart + Math.ceil((end - at) / subclusterSize) - 1)
    if (format.compressed && bits !== format.all) return false
    // Version 1 cannot take a cluster back.
    if (this.#image.qcow2 === undefined) return false
    const flagless = !format.zeroFlag
    if (flagless && backedBytes(this.#image, at, end - at) > 0) return false
    const { copied, host } = format
    const allocated = format.compressed ? 0 : (format.allocated & ~bits) >>> 0
    const zeroes = flagless ? 0 : (format.zeroes | bits) >>> 0
    const stays = allocated !== 0 || format.dataFile || (keep && copied && !flagless)
    if (host === NOWHERE || !stays) {
      this.#writer.release(table, entry)
      format.put(table.bytes, entry, NOWHERE, 0, zeroes)
    } else format.put(table.bytes, entry, host, allocated, zeroes, copied)
    mapping.soil(table, entry, entry)
    return true
  }

  async #punchDataFile(start: number, stop: number): Promise<void> {
    const { device } = this.#image.data
    const there = Math.min(stop, device.geometry.size) - start
    if (device.can.trim && there > 0) await device.trim(start, there, 0)
  }
}

interface Range {
  readonly at: number
  readonly end: number
}
