/**
 * The active L1 table and a bounded cache of its L2 tables.
 *
 * Invariants:
 *  - Nobody keeps a table across an await: it may be evicted. cached() is asked again, and the table loaded again.
 *  - A table is evicted only when the file holds all of it: neither changed, nor being written, nor unnamed by L1 on disk.
 *  - A table that is changed belongs to the active L1 table alone (own() copies one that a snapshot uses).
 *  - Every entry of a table in memory has been examined; those that cannot be used are in `bad`.
 */

import { assert } from '../../core/assert.ts'
import { isPromise, then, type MaybePromise } from '../../core/maybe-promise.ts'
import { SECTOR } from '../../core/units.ts'
import { NOWHERE, type EntryFormat } from '../../formats/qcow/entry-format.ts'
import { roundDown, roundUp } from '../../formats/qcow/layout.ts'
import type { HostFile } from './host-file.ts'
import type { MetadataPlaces } from './metadata-places.ts'

export class L2Table {
  readonly index: number
  readonly bytes: Buffer
  at: number
  /** Entries that cannot be used, each with the reason. */
  bad: Map<number, string> | undefined
  /** The bytes to be written back; none where `dirtyFrom >= dirtyTo`. */
  dirtyFrom = Number.MAX_SAFE_INTEGER
  dirtyTo = 0
  /** The L1 table on disk names it. */
  named: boolean
  writing = false
  /** It was asked for since the last look for one to evict. */
  used = true

  constructor(index: number, at: number, bytes: Buffer, named: boolean) {
    this.index = index
    this.at = at
    this.bytes = bytes
    this.named = named
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

/** A copy of changed bytes of a table, to be written as they were at one instant. */
export interface TableCopy {
  readonly table: L2Table
  readonly from: number
  readonly bytes: Buffer
}

/** Everything that had changed at one instant. */
export interface MappingCut {
  /** Whole tables that the L1 table on disk does not name. */
  readonly unnamed: readonly TableCopy[]
  readonly named: readonly TableCopy[]
  /** Sectors of the L1 table, by number. */
  readonly l1: ReadonlyMap<number, Buffer>
}

export interface MappingTablesOptions {
  readonly file: HostFile
  /** Bytes of the file that holds guest clusters, for judging entries. */
  readonly guestFileSize: () => number
  readonly format: EntryFormat
  readonly l1: Buffer
  readonly l1At: number
  readonly places: MetadataPlaces
  /** Gives a place for a new table; undefined where the image is open for reading. */
  readonly allocate: (() => MaybePromise<number>) | undefined
  /** The most tables in memory. */
  readonly limit: number
  /** Makes changed tables clean, so that one can be evicted. */
  readonly relieve: () => Promise<void>
  /** A cluster lost one reference, once what is in memory now is on stable storage. */
  readonly onUnused: (at: number, clusters: number) => void
}

export class MappingTables {
  l1: Buffer
  l1At: number
  readonly #options: MappingTablesOptions
  readonly #format: EntryFormat
  readonly #file: HostFile
  readonly #tables = new Map<number, L2Table>()
  readonly #loading = new Map<number, Promise<void>>()
  readonly #making = new Map<number, Promise<void>>()
  readonly #dirtyL1 = new Set<number>()
  readonly #dirtyTables = new Set<L2Table>()

  constructor(options: MappingTablesOptions) {
    this.#options = options
    this.#format = options.format
    this.#file = options.file
    this.l1 = options.l1
    this.l1At = options.l1At
  }

  get dirty(): boolean {
    return this.#dirtyL1.size > 0 || this.#dirtyTables.size > 0
  }

  get dirtyTables(): number {
    return this.#dirtyTables.size
  }

  /** Whether L1 names a table, in memory or not. */
  exists(index: number): boolean {
    return this.#format.tableAt(this.l1, index) !== 0
  }

  /** The table if it is in memory; not to be kept across an await. */
  cached(index: number): L2Table | undefined {
    const table = this.#tables.get(index)
    if (table !== undefined) table.used = true
    return table
  }

  /** The table if it is in memory and may be changed; not to be kept across an await. */
  owned(index: number): L2Table | undefined {
    return this.#format.owns(this.l1, index) ? this.cached(index) : undefined
  }

  /** Brings a table that exists into memory. */
  load(index: number): MaybePromise<void> {
    if (this.#tables.has(index)) return undefined
    const under = this.#loading.get(index)
    if (under !== undefined) return under
    const loaded = then(this.#room(), () => this.#read(index))
    if (!isPromise(loaded)) return undefined
    const ended = loaded.finally(() => this.#loading.delete(index))
    this.#loading.set(index, ended)
    return ended
  }

  /** Makes owned() give a table: loads it, creates it, or copies it from a snapshot. */
  own(index: number): MaybePromise<void> {
    const under = this.#making.get(index)
    if (under !== undefined) return under
    if (this.#format.owns(this.l1, index)) return this.load(index)
    const made = this.#make(index)
    if (!isPromise(made)) return undefined
    const ended = made.finally(() => this.#making.delete(index))
    this.#making.set(index, ended)
    return ended
  }

  /** Entries [first, last] of the table have changed. */
  soil(table: L2Table, first: number, last: number): void {
    const { l2EntryBytes } = this.#format.layout
    table.soil(first * l2EntryBytes, (last + 1) * l2EntryBytes)
    this.#dirtyTables.add(table)
    if (table.bad !== undefined)
      for (let index = first; index <= last; index += 1) table.bad.delete(index)
  }

  /** Copies what has changed; it counts as clean from now on. Follow with settle(). */
  cut(): MappingCut {
    const copies = [...this.#dirtyTables].map((table): TableCopy => {
      const from = table.named ? roundDown(table.dirtyFrom, SECTOR) : 0
      const to = table.named ? roundUp(table.dirtyTo, SECTOR) : table.bytes.length
      table.clean()
      table.writing = true
      return { table, from, bytes: Buffer.from(table.bytes.subarray(from, to)) }
    })
    this.#dirtyTables.clear()
    const l1 = new Map<number, Buffer>()
    for (const sector of this.#dirtyL1)
      l1.set(sector, Buffer.from(this.l1.subarray(sector * SECTOR, (sector + 1) * SECTOR)))
    this.#dirtyL1.clear()
    return {
      unnamed: copies.filter(({ table }) => !table.named),
      named: copies.filter(({ table }) => table.named),
      l1,
    }
  }

  /** What cut() gave is on stable storage, or it is not and has to be written again. */
  settle({ unnamed, named, l1 }: MappingCut, durable: boolean): void {
    for (const { table, from, bytes } of [...unnamed, ...named]) {
      table.writing = false
      if (durable) table.named = true
      else {
        table.soil(from, from + bytes.length)
        this.#dirtyTables.add(table)
      }
    }
    if (!durable) for (const sector of l1.keys()) this.#dirtyL1.add(sector)
  }

  /** Uses another L1 table from now on, with the same content as far as the old one reaches. */
  moveL1(l1: Buffer, at: number): void {
    assert(this.#dirtyL1.size === 0, 'the L1 table moves when nothing of it is to be written')
    this.l1 = l1
    this.l1At = at
  }

  #make(index: number): MaybePromise<void> {
    const { allocate } = this.#options
    assert(allocate !== undefined, 'only an image that is open for writing is changed')
    if (this.exists(index)) return this.#copyShared(index, allocate)
    return then(this.#room(), () =>
      then(allocate(), (at) => {
        const bytes = Buffer.alloc(this.#format.layout.l2Bytes)
        this.#name(new L2Table(index, at, bytes, false))
      }),
    )
  }

  /** A table that a snapshot uses as well stays as it is; the active L1 table gets one of its own. */
  async #copyShared(index: number, allocate: () => MaybePromise<number>): Promise<void> {
    const at = await allocate()
    try {
      let shared = this.cached(index)
      while (shared === undefined) {
        await this.load(index)
        shared = this.cached(index)
      }
      const table = new L2Table(index, at, Buffer.from(shared.bytes), false)
      table.bad = shared.bad
      this.#options.places.remove(shared.at)
      this.#options.onUnused(shared.at, 1)
      this.#name(table)
    } catch (error) {
      this.#options.onUnused(at, 1)
      throw error
    }
  }

  #name(table: L2Table): void {
    this.#format.name(this.l1, table.index, table.at)
    this.#dirtyL1.add(Math.floor((table.index * 8) / SECTOR))
    this.#tables.set(table.index, table)
    this.#options.places.add(table.at, table.bytes.length)
    table.soil(0, table.bytes.length)
    this.#dirtyTables.add(table)
  }

  /** Room for one more table. */
  #room(): MaybePromise<void> {
    if (this.#tables.size < this.#options.limit || this.#evict()) return undefined
    return this.#options.relieve().then(() => void this.#evict())
  }

  #evict(): boolean {
    for (let pass = 0; pass < 2; pass += 1) {
      for (const table of this.#tables.values()) {
        if (table.dirty || table.writing || !table.named) continue
        if (!table.used) {
          this.#tables.delete(table.index)
          return true
        }
        table.used = false
      }
    }
    return false
  }

  #read(index: number): MaybePromise<void> {
    const at = this.#format.tableAt(this.l1, index)
    assert(at !== 0, 'L1 names the table')
    const table = new L2Table(index, at, Buffer.alloc(this.#format.layout.l2Bytes), true)
    return then(this.#file.read(table.bytes, at), () => {
      this.#examine(table)
      this.#tables.set(index, table)
    })
  }

  #examine(table: L2Table): void {
    const { clusterSize, l2EntryBytes, l2Entries, l2Span } = this.#format.layout
    const fileSize = this.#options.guestFileSize()
    for (let index = 0; index < l2Entries; index += 1) {
      const at = index * l2EntryBytes
      if (isZero(table.bytes, at, l2EntryBytes)) continue
      const guestAt = table.index * l2Span + index * clusterSize
      const reason =
        this.#format.objection(table.bytes, index, fileSize, guestAt) ?? this.#overlap(table, index)
      if (reason !== undefined) (table.bad ??= new Map()).set(index, reason)
    }
  }

  /** Why the entry that was looked at last maps metadata. */
  #overlap(table: L2Table, index: number): string | undefined {
    const { compressed, dataFile, host } = this.#format
    const { places } = this.#options
    if (dataFile) return undefined
    if (compressed) {
      const { at, length } = this.#format.compressedPlace(table.bytes, index)
      return places.hasAny(at, length) ? `compressed data at ${at} overlaps metadata` : undefined
    }
    return host !== NOWHERE && places.has(host)
      ? `the cluster at ${host} holds metadata`
      : undefined
  }
}

function isZero(bytes: Buffer, at: number, length: number): boolean {
  for (let word = at; word < at + length; word += 4) if (bytes.readInt32LE(word) !== 0) return false
  return true
}
