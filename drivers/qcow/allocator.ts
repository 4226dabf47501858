/**
 * Gives host clusters out and takes them back.
 *
 * Invariants:
 *  - A cluster is given out only when its refcount is zero, and never when it holds metadata; cluster 0 never is.
 *  - Every free cluster below the cursor lies in a block that is not marked as full; the search loses nothing.
 *  - A cluster that comes back is punched, where holes are wanted, before its count becomes zero: a hole never hits
 *    somebody's new data.
 */

import type { Fault } from '../../core/fault.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import type { Layout } from '../../formats/qcow/layout.ts'
import { firstFree } from '../../formats/qcow/refcounts.ts'
import { corruption } from './corruption.ts'
import type { HeaderSector } from './header-sector.ts'
import type { HostFile } from './host-file.ts'
import type { MetadataPlaces } from './metadata-places.ts'
import type { RefcountBlocks } from './refcount-blocks.ts'
import { growRefcountTable } from './refcount-table-growth.ts'
import type { Serial } from './serial.ts'

/** Contiguous host clusters that now belong to whoever asked. */
export interface Run {
  /** Byte offset. */
  readonly at: number
  readonly clusters: number
  /** The file is known to hold zeroes there. */
  readonly zeroed: boolean
}

export interface AllocatorOptions {
  readonly blocks: RefcountBlocks
  readonly places: MetadataPlaces
  readonly header: HeaderSector
  /** Held by whoever writes metadata in a certain order. */
  readonly order: Serial
  /** Whether clusters that become free are given back to the file system. */
  readonly punch: boolean
  /** Ends all writing; called when a table lies where the refcounts say that nothing is. */
  readonly corrupt: (what: string) => Fault
  /** Called with clusters that became unused on the way. */
  readonly onUnused: (at: number, clusters: number) => void
}

/** What a search needs before it can go on. */
type Need =
  | { readonly kind: 'load' | 'new block' | 'larger table'; readonly block: number }
  | { readonly kind: 'larger file'; readonly end: number }

export class Allocator {
  readonly #options: AllocatorOptions
  readonly #blocks: RefcountBlocks
  readonly #layout: Layout
  readonly #file: HostFile
  /** Blocks in which the search found nothing. */
  readonly #full = new Set<number>()
  /** The search begins here, at this cluster number. */
  #cursor = 1
  /** From this byte offset on the file holds zeroes: it has grown by that since it was opened, and nobody was given it. */
  #freshFrom: number
  #need: Need | undefined
  #making: Promise<void> | undefined

  constructor(options: AllocatorOptions) {
    this.#options = options
    this.#blocks = options.blocks
    this.#layout = options.blocks.layout
    this.#file = options.blocks.file
    this.#freshFrom = this.#file.grows ? this.#file.size : Number.MAX_SAFE_INTEGER
  }

  /** One to `count` clusters behind each other. @throws Fault NO_SPACE, or of the file */
  allocate(count: number): MaybePromise<Run> {
    return this.#take(count) ?? this.#allocateSlowly(count)
  }

  /** `count` clusters behind each other, for tables that must not be in pieces; at the end of what is in use. */
  async allocateWhole(count: number): Promise<Run> {
    const pieces: Run[] = []
    for (;;) {
      const run = await this.allocate(count)
      const last = pieces.at(-1)
      if (last !== undefined && last.at + last.clusters * this.#layout.clusterSize === run.at)
        pieces.splice(-1, 1, { ...last, clusters: last.clusters + run.clusters, zeroed: false })
      else pieces.push(run)
      const whole = pieces.find(({ clusters }) => clusters >= count)
      if (whole === undefined) continue
      for (const piece of pieces)
        if (piece !== whole) this.#options.onUnused(piece.at, piece.clusters)
      const extra = whole.clusters - count
      if (extra > 0) this.#options.onUnused(whole.at + count * this.#layout.clusterSize, extra)
      return { ...whole, clusters: count }
    }
  }

  /** Takes one reference of each cluster back. No request may be on its way to them any more. */
  async drop(at: number, clusters: number): Promise<void> {
    const { clusterSize, refcountsPerBlock } = this.#layout
    const end = at / clusterSize + clusters
    for (let cluster = at / clusterSize; cluster < end;) {
      const within = cluster % refcountsPerBlock
      const index = this.#indexOf(cluster)
      let block = this.#blocks.cached(index)
      while (block === undefined) {
        await this.#blocks.load(index)
        block = this.#blocks.cached(index)
      }
      let single = 0
      const most = Math.min(end - cluster, refcountsPerBlock - within)
      while (single < most && this.#blocks.read(block, within + single) === 1) single += 1
      if (single === 0) {
        const count = this.#blocks.read(block, within)
        if (count === 0)
          throw corruption(this.#file.path, `cluster at ${cluster * clusterSize} has no refcount`)
        this.#blocks.write(block, within, count - 1)
        cluster += 1
        continue
      }
      await this.#punch(cluster * clusterSize, single * clusterSize)
      await this.#free(cluster, single)
      cluster += single
    }
  }

  /** Clusters whose counts are all 1 become free; they lie in one block. */
  async #free(cluster: number, count: number): Promise<void> {
    const { refcountsPerBlock } = this.#layout
    const index = Math.floor(cluster / refcountsPerBlock)
    let block = this.#blocks.cached(index)
    while (block === undefined) {
      await this.#blocks.load(index)
      block = this.#blocks.cached(index)
    }
    const within = cluster % refcountsPerBlock
    for (let each = 0; each < count; each += 1) this.#blocks.write(block, within + each, 0)
    this.#full.delete(index)
    if (cluster < this.#cursor) this.#cursor = cluster
  }

  /** The block that describes a cluster in use. */
  #indexOf(cluster: number): number {
    const index = Math.floor(cluster / this.#layout.refcountsPerBlock)
    if ((this.#blocks.table[index] ?? 0) !== 0) return index
    const at = cluster * this.#layout.clusterSize
    throw corruption(this.#file.path, `cluster at ${at} has no refcount`)
  }

  async #punch(at: number, length: number): Promise<void> {
    const { device } = this.#file
    if (!this.#options.punch || !device.can.trim) return
    const there = Math.min(length, this.#file.size - at)
    if (there > 0) await device.trim(at, there, 0)
  }

  /** The search, as far as memory allows; `#need` says what is missing where it gives nothing. */
  #take(count: number): Run | undefined {
    const { refcountsPerBlock, clusterSize, refcountBits } = this.#layout
    for (let cluster = this.#cursor; ;) {
      const index = Math.floor(cluster / refcountsPerBlock)
      if (this.#full.has(index)) {
        cluster = (index + 1) * refcountsPerBlock
        continue
      }
      const block = this.#blocks.cached(index)
      if (block === undefined) {
        this.#missing(index)
        return undefined
      }
      const within = cluster % refcountsPerBlock
      const first = firstFree(block.bytes, refcountBits, within, refcountsPerBlock)
      if (first === refcountsPerBlock) {
        this.#full.add(index)
        cluster = (index + 1) * refcountsPerBlock
        this.#cursor = cluster
        continue
      }
      const start = index * refcountsPerBlock + first
      const most = Math.min(count, refcountsPerBlock - first, this.#roomAt(start * clusterSize))
      let clusters = 1
      while (clusters < most && this.#blocks.read(block, first + clusters) === 0) clusters += 1
      const at = start * clusterSize
      const end = at + clusters * clusterSize
      if (end > this.#file.size) {
        this.#need = { kind: 'larger file', end }
        return undefined
      }
      if (this.#options.places.hasAny(at, end - at))
        throw this.#options.corrupt(`metadata at ${at} has no refcount`)
      for (let each = 0; each < clusters; each += 1) this.#blocks.write(block, first + each, 1)
      this.#cursor = start + clusters
      const zeroed = at >= this.#freshFrom
      if (end > this.#freshFrom) this.#freshFrom = end
      void this.#file.ensure(end)
      return { at, clusters, zeroed }
    }
  }

  /** Notes what the search needs to go on at a block that is not in memory. */
  #missing(index: number): void {
    const { table } = this.#blocks
    const kind = index >= table.length ? 'larger table' : table[index] === 0 ? 'new block' : 'load'
    this.#need = { kind, block: index }
  }

  /** The most clusters that fit from `at` on; one at least, which then fails for want of room. */
  #roomAt(at: number): number {
    if (this.#file.grows) return Number.MAX_SAFE_INTEGER
    return Math.max(1, Math.floor((this.#file.size - at) / this.#layout.clusterSize))
  }

  async #allocateSlowly(count: number): Promise<Run> {
    for (;;) {
      if (this.#making !== undefined) await this.#making
      const run = this.#take(count)
      if (run !== undefined) return run
      if (this.#making !== undefined || this.#need === undefined) continue
      this.#making = this.#make(this.#need).finally(() => (this.#making = undefined))
      await this.#making
    }
  }

  async #make(need: Need): Promise<void> {
    switch (need.kind) {
      case 'load': {
        const loaded = this.#blocks.load(need.block)
        if (isPromise(loaded)) await loaded
        return
      }
      case 'larger file':
        await this.#file.ensure(need.end)
        return
      case 'new block':
        await this.#addBlock(need.block)
        return
      case 'larger table': {
        const { header, onUnused, order, places } = this.#options
        const unused = await order.run(() => growRefcountTable(this.#blocks, header, need.block))
        places.add(this.#blocks.tableAt, this.#blocks.table.length * 8)
        places.remove(unused.at, unused.clusters * this.#layout.clusterSize)
        onUnused(unused.at, unused.clusters)
      }
    }
  }

  /** A block in the first of the clusters that it describes: all of them are free. */
  async #addBlock(index: number): Promise<void> {
    const { clusterSize, refcountsPerBlock } = this.#layout
    if (index === 0) throw this.#options.corrupt('the header has no refcount')
    const at = index * refcountsPerBlock * clusterSize
    if (this.#options.places.has(at))
      throw this.#options.corrupt(`metadata at ${at} has no refcount`)
    await this.#file.ensure(at + clusterSize)
    this.#blocks.write(this.#blocks.add(index, at), 0, 1)
    if (at + clusterSize > this.#freshFrom) this.#freshFrom = at + clusterSize
  }
}
