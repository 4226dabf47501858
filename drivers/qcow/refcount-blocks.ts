/**
 * The refcount table and a bounded cache of refcount blocks, written back in the order that the format needs.
 *
 * Invariants:
 *  - A block that the table on disk names has its content on stable storage (writeNew() waits for it).
 *  - Nobody keeps a block across an await: it may be evicted. cached() is asked again, and the block loaded again.
 *  - Counts in memory are never lower than what the mappings on disk, or about to be there, need.
 */

import { assert } from '../../core/assert.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { SECTOR } from '../../core/units.ts'
import { roundDown, roundUp, type Layout } from '../../formats/qcow/layout.ts'
import { readRefcount, refcountBytes, writeRefcount } from '../../formats/qcow/refcounts.ts'
import { corruption } from './corruption.ts'
import { allEnded, type HostFile } from './host-file.ts'
import type { MetadataPlaces } from './metadata-places.ts'

export class RefcountBlock {
  readonly index: number
  readonly at: number
  readonly bytes: Buffer
  /** The bytes to be written back; none where `dirtyFrom >= dirtyTo`. */
  dirtyFrom = Number.MAX_SAFE_INTEGER
  dirtyTo = 0
  /** The table on disk does not name it yet. */
  isNew = false
  /** It was asked for since the last look for one to evict. */
  used = true
  writing = false

  constructor(index: number, at: number, bytes: Buffer) {
    this.index = index
    this.at = at
    this.bytes = bytes
  }

  get dirty(): boolean {
    return this.dirtyFrom < this.dirtyTo
  }

  soil(from: number, to: number): void {
    if (from < this.dirtyFrom) this.dirtyFrom = from
    if (to > this.dirtyTo) this.dirtyTo = to
  }

  clean(): void {
    this.dirtyFrom = Number.MAX_SAFE_INTEGER
    this.dirtyTo = 0
  }
}

export interface RefcountBlocksOptions {
  readonly file: HostFile
  readonly layout: Layout
  readonly places: MetadataPlaces
  /** The table's entries: byte offsets of blocks, 0 where there is none. */
  readonly table: Float64Array
  readonly tableAt: number
  /** The most blocks in memory. */
  readonly limit: number
}

export class RefcountBlocks {
  readonly file: HostFile
  readonly layout: Layout
  table: Float64Array
  tableAt: number
  readonly #places: MetadataPlaces
  readonly #limit: number
  readonly #blocks = new Map<number, RefcountBlock>()
  readonly #loading = new Map<number, Promise<void>>()
  #writing: Promise<void> | undefined
  #dirty = 0

  constructor({ file, layout, places, table, tableAt, limit }: RefcountBlocksOptions) {
    this.file = file
    this.layout = layout
    this.#places = places
    this.table = table
    this.tableAt = tableAt
    this.#limit = limit
  }

  /** Whether something must be written back. Also true a little longer than that. */
  get dirty(): boolean {
    return this.#dirty > 0
  }

  /** The block if it is in memory; not to be kept across an await. */
  cached(index: number): RefcountBlock | undefined {
    const block = this.#blocks.get(index)
    if (block !== undefined) block.used = true
    return block
  }

  /** Brings a block that the table names into memory. */
  load(index: number): MaybePromise<void> {
    if (this.#blocks.has(index)) return undefined
    const under = this.#loading.get(index)
    if (under !== undefined) return under
    const loaded = this.#load(index)
    if (!isPromise(loaded)) return undefined
    const ended = loaded.finally(() => this.#loading.delete(index))
    this.#loading.set(index, ended)
    return ended
  }

  /** The count of a host cluster in a block that is in memory. */
  read(block: RefcountBlock, within: number): number {
    return readRefcount(block.bytes, this.layout.refcountBits, within)
  }

  write(block: RefcountBlock, within: number, value: number): void {
    const { refcountBits } = this.layout
    writeRefcount(block.bytes, refcountBits, within, value)
    const { from, to } = refcountBytes(refcountBits, within, within)
    this.#soil(block, from, to)
  }

  /** A new block at `at`, which the table in memory names from now on. */
  add(index: number, at: number): RefcountBlock {
    const block = new RefcountBlock(index, at, Buffer.alloc(this.layout.clusterSize))
    block.isNew = true
    this.#blocks.set(index, block)
    this.table[index] = at
    this.#places.add(at)
    this.#soil(block, 0, block.bytes.length)
    return block
  }

  /**
   * Writes the blocks that the table on disk does not name, then, when they are on stable storage, the table's entries.
   * The entries are on stable storage after the next flush. Only one caller at a time.
   */
  async writeNew(): Promise<void> {
    const blocks = [...this.#blocks.values()].filter(({ isNew }) => isNew)
    if (blocks.length === 0) return
    await this.#writeBack(blocks)
    await this.file.flush()
    await this.#writeEntries(blocks.map(({ index }) => index))
    for (const block of blocks) block.isNew = false
  }

  /** Writes every changed block that the table on disk names. */
  async writeChanged(): Promise<void> {
    for (;;) {
      while (this.#writing !== undefined) await this.#writing
      const blocks = [...this.#blocks.values()].filter(({ dirty, isNew }) => dirty && !isNew)
      if (blocks.length === 0) return
      await this.#writeBack(blocks)
    }
  }

  /** Uses another, larger table from now on, which is on stable storage already, as are the blocks that it adds. */
  moveTable(table: Float64Array, at: number, added: readonly RefcountBlock[]): void {
    this.table = table
    this.tableAt = at
    for (const block of added) {
      this.#blocks.set(block.index, block)
      this.#places.add(block.at)
    }
  }

  #load(index: number): MaybePromise<void> {
    if (this.#blocks.size >= this.#limit && !this.#evict())
      return this.writeChanged().then(() => {
        this.#evict()
        return this.#read(index)
      })
    return this.#read(index)
  }

  #read(index: number): MaybePromise<void> {
    const at = this.table[index] ?? 0
    assert(at !== 0, 'the table names the block')
    const { clusterSize } = this.layout
    if (at % clusterSize !== 0 || at + clusterSize > roundUp(this.file.size, clusterSize))
      throw corruption(this.file.path, `refcount block ${index} cannot be at ${at}`)
    const block = new RefcountBlock(index, at, Buffer.alloc(clusterSize))
    const done = this.file.read(block.bytes, at)
    const keep = (): void => void this.#blocks.set(index, block)
    return isPromise(done) ? done.then(keep) : keep()
  }

  #evict(): boolean {
    for (let pass = 0; pass < 2; pass += 1) {
      for (const block of this.#blocks.values()) {
        if (block.dirty || block.isNew || block.writing) continue
        if (!block.used) {
          this.#blocks.delete(block.index)
          return true
        }
        block.used = false
      }
    }
    return false
  }

  #soil(block: RefcountBlock, from: number, to: number): void {
    if (!block.dirty) this.#dirty += 1
    block.soil(from, to)
  }

  /** One at a time: two writes of one block must not overtake each other. */
  async #writeBack(blocks: readonly RefcountBlock[]): Promise<void> {
    while (this.#writing !== undefined) await this.#writing
    const work = this.#writeCopies(blocks)
    // Those who wait for their turn only want to know that it is over.
    this.#writing = work.catch(() => undefined).finally(() => (this.#writing = undefined))
    await work
  }

  /** Copies are written: the blocks may change meanwhile, and half a number must not reach the disk. */
  #writeCopies(blocks: readonly RefcountBlock[]): Promise<void> {
    return allEnded(
      blocks.map(async (block) => {
        if (!block.dirty) return
        const from = roundDown(block.dirtyFrom, SECTOR)
        const to = roundUp(block.dirtyTo, SECTOR)
        block.clean()
        this.#dirty -= 1
        block.writing = true
        try {
          await this.file.write(Buffer.from(block.bytes.subarray(from, to)), block.at + from)
        } catch (error) {
          this.#soil(block, from, to)
          throw error
        } finally {
          block.writing = false
        }
      }),
    )
  }

  /** Writes the sectors of the table that hold these entries; blocks that are not on disk stay unnamed. */
  async #writeEntries(indexes: readonly number[]): Promise<void> {
    const perSector = SECTOR / 8
    const sectors = new Set(indexes.map((index) => Math.floor(index / perSector)))
    const durable = new Set(indexes)
    const writes = [...sectors].map(async (sector) => {
      const bytes = Buffer.alloc(SECTOR)
      for (let entry = 0; entry < perSector; entry += 1) {
        const index = sector * perSector + entry
        const unnamed = this.#blocks.get(index)?.isNew === true && !durable.has(index)
        const at = unnamed ? 0 : (this.table[index] ?? 0)
        bytes.writeBigUInt64BE(BigInt(at), entry * 8)
      }
      await this.file.write(bytes, this.tableAt + sector * SECTOR)
    })
    await allEnded(writes)
  }
}
