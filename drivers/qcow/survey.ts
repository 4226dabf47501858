/**
 * Counts how often every host cluster of a QCOW2 image is referred to, and compares that with its refcounts.
 *
 * Invariants:
 *  - Nothing is written.
 *  - Memory is 4 bytes for each host cluster up to the last one referred to; more than MOST_CLUSTERS are refused.
 */

import { Fault } from '../../core/fault.ts'
import { parseBitmapDirectory, parseBitmapsExtension } from '../../formats/qcow/bitmaps.ts'
import { hostClusters } from '../../formats/qcow/compressed.ts'
import { NOWHERE } from '../../formats/qcow/entry-format.ts'
import { EXTENSION } from '../../formats/qcow/header-extensions.ts'
import { BITMAPS, type Qcow2Header } from '../../formats/qcow/header.ts'
import { L2Format } from '../../formats/qcow/l2-table.ts'
import { readRefcount } from '../../formats/qcow/refcounts.ts'
import type { Snapshot } from '../../formats/qcow/snapshots.ts'
import type { Progress } from '../image-format.ts'
import type { HostFile } from './host-file.ts'

const MOST_CLUSTERS = 2 ** 28
/** Messages of one kind that are kept; the rest is counted. */
const MOST_MESSAGES = 100

/** An entry of the active tables whose bit 63 is wrong. */
export interface WrongFlag {
  /** Byte offset of the entry in the image. */
  readonly at: number
  readonly copied: boolean
}

export interface Survey {
  /** References by host cluster. */
  readonly counts: Uint32Array
  /** What cannot be mended by counting anew. */
  readonly damage: Messages
  /** Clusters whose refcount is too low, and flags that do not agree with it. */
  readonly wrong: Messages
  /** Clusters whose refcount is too high. */
  readonly leaks: Messages
  readonly flags: readonly WrongFlag[]
  /** Some of the refcounts have no place: the blocks have to be made anew. */
  readonly blocksMissing: boolean
  readonly dataClusters: number
  readonly compressedClusters: number
}

/** Messages, of which only the first ones are kept. */
class Messages {
  readonly kept: string[] = []
  count = 0

  add(message: string): void {
    this.count += 1
    if (this.count <= MOST_MESSAGES) this.kept.push(message)
  }

  list(): string[] {
    const more = this.count - this.kept.length
    return more === 0 ? [...this.kept] : [...this.kept, `${more} more of this kind`]
  }
}

export interface SurveyedTables {
  readonly l1: Buffer
  readonly refcountTable: Float64Array
  readonly snapshots: readonly Snapshot[]
  /** Bytes of the snapshot table. */
  readonly snapshotTableBytes: number
}

export async function survey(
  file: HostFile,
  header: Qcow2Header,
  tables: SurveyedTables,
  progress: Progress,
): Promise<Survey> {
  const surveyor = new Surveyor(file, header)
  await surveyor.countAll(tables, progress)
  await surveyor.compare(tables)
  return surveyor.result()
}

class Surveyor {
  readonly #file: HostFile
  readonly #header: Qcow2Header
  readonly #format: L2Format
  readonly #clusterSize: number
  #counts: Uint32Array = new Uint32Array(1024)
  #end = 0
  readonly #damage = new Messages()
  readonly #wrong = new Messages()
  readonly #leaks = new Messages()
  readonly #flags: WrongFlag[] = []
  #blocksMissing = false
  #data = 0
  #compressed = 0

  constructor(file: HostFile, header: Qcow2Header) {
    this.#file = file
    this.#header = header
    this.#clusterSize = header.layout.clusterSize
    const { layout, version } = header
    this.#format = new L2Format({ layout, version, dataFile: header.dataFile !== undefined })
  }

  result(): Survey {
    return {
      counts: this.#counts.subarray(0, this.#end),
      damage: this.#damage,
      wrong: this.#wrong,
      leaks: this.#leaks,
      flags: this.#flags,
      blocksMissing: this.#blocksMissing,
      dataClusters: this.#data,
      compressedClusters: this.#compressed,
    }
  }

  async countAll(tables: SurveyedTables, progress: Progress): Promise<void> {
    const header = this.#header
    this.#refer(0, this.#clusterSize)
    this.#refer(header.l1At, header.l1Entries * 8)
    this.#refer(header.refcountTableAt, header.refcountTableClusters * this.#clusterSize)
    for (const at of tables.refcountTable) if (at !== 0) this.#refer(at, this.#clusterSize)
    if (tables.snapshots.length > 0) this.#refer(header.snapshotsAt, tables.snapshotTableBytes)
    const total = tables.snapshots.reduce((sum, each) => sum + each.l1Entries, header.l1Entries)
    let before = 0
    const told: Progress = (done) => progress(before + done, total)
    await this.#countMapping(tables.l1, header.l1Entries, 'the disk', told)
    before += header.l1Entries
    for (const snapshot of tables.snapshots) {
      this.#refer(snapshot.l1At, snapshot.l1Entries * 8)
      const l1 = Buffer.alloc(snapshot.l1Entries * 8)
      await this.#file.read(l1, snapshot.l1At)
      await this.#countMapping(l1, snapshot.l1Entries, `snapshot "${snapshot.name}"`, told)
      before += snapshot.l1Entries
    }
    await this.#countBitmaps()
  }

  /** Compares what was counted with the refcounts, and the flags of the active tables with what was counted. */
  async compare({ l1, refcountTable }: SurveyedTables): Promise<void> {
    const { refcountBits, refcountsPerBlock } = this.#header.layout
    const block = Buffer.alloc(this.#clusterSize)
    const blocks = Math.max(refcountTable.length, Math.ceil(this.#end / refcountsPerBlock))
    for (let index = 0; index < blocks; index += 1) {
      const first = index * refcountsPerBlock
      const at = refcountTable[index] ?? 0
      if (at === 0) {
        const used = this.#counts.subarray(first, Math.min(first + refcountsPerBlock, this.#end))
        if (used.every((count) => count === 0)) continue
        this.#blocksMissing = true
        block.fill(0)
      } else await this.#file.read(block, at)
      for (let within = 0; within < refcountsPerBlock; within += 1) {
        const recorded = readRefcount(block, refcountBits, within)
        const cluster = first + within
        const counted = cluster < this.#end ? (this.#counts[cluster] ?? 0) : 0
        if (recorded === counted) continue
        const text = `cluster at ${cluster * this.#clusterSize}: refcount ${recorded}, ${counted} references`
        if (recorded > counted) this.#leaks.add(text)
        else this.#wrong.add(text)
      }
    }
    await this.#compareFlags(l1)
  }

  async #countMapping(
    l1: Buffer,
    entries: number,
    whose: string,
    progress: Progress,
  ): Promise<void> {
    const { clusterSize, l2Bytes, l2Entries, l2Span } = this.#format.layout
    const table = Buffer.alloc(l2Bytes)
    for (let index = 0; index < entries; index += 1) {
      if (index % 64 === 0) progress(index, entries)
      const at = this.#format.tableAt(l1, index)
      if (at === 0) continue
      if (at % clusterSize !== 0 || at >= this.#file.size) {
        this.#damage.add(`${whose}: L1 entry ${index} names no L2 table of the file`)
        continue
      }
      this.#refer(at, clusterSize)
      await this.#file.read(table, at)
      for (let entry = 0; entry < l2Entries; entry += 1)
        this.#countEntry(table, entry, index * l2Span + entry * clusterSize, whose)
    }
  }

  #countEntry(table: Buffer, entry: number, guestAt: number, whose: string): void {
    const format = this.#format
    const fileSize = format.dataFile ? Number.MAX_SAFE_INTEGER : this.#file.size
    const reason = format.objection(table, entry, fileSize, guestAt)
    if (reason !== undefined) {
      this.#damage.add(`${whose}: byte ${guestAt}: ${reason}`)
      return
    }
    if (format.compressed) {
      const { first, last } = hostClusters(format.compressedPlace(table, entry), this.#clusterSize)
      this.#refer(first * this.#clusterSize, (last - first + 1) * this.#clusterSize)
      this.#compressed += 1
    } else if (format.host !== NOWHERE) {
      if (!format.dataFile) this.#refer(format.host, this.#clusterSize)
      this.#data += 1
    }
  }

  async #countBitmaps(): Promise<void> {
    const { autoclear, extensions, layout } = this.#header
    const extension = extensions.find(({ type }) => type === EXTENSION.bitmaps)
    if (extension === undefined || (autoclear & BITMAPS) === 0n) return
    const { at, count, length } = parseBitmapsExtension(extension.data, layout, this.#file.size)
    this.#refer(at, length)
    const directory = Buffer.alloc(length)
    await this.#file.read(directory, at)
    for (const bitmap of parseBitmapDirectory(directory, count, layout, this.#file.size)) {
      this.#refer(bitmap.tableAt, bitmap.tableEntries * 8)
      const table = Buffer.alloc(bitmap.tableEntries * 8)
      await this.#file.read(table, bitmap.tableAt)
      for (let index = 0; index < bitmap.tableEntries; index += 1) {
        const cluster = this.#format.tableAt(table, index)
        if (cluster === 0) continue
        if (cluster % this.#clusterSize !== 0 || cluster >= this.#file.size)
          this.#damage.add(`bitmap "${bitmap.name}": entry ${index} names no cluster of the file`)
        else this.#refer(cluster, this.#clusterSize)
      }
    }
  }

  async #compareFlags(l1: Buffer): Promise<void> {
    const { l2Bytes, l2EntryBytes, l2Entries } = this.#format.layout
    const table = Buffer.alloc(l2Bytes)
    for (let index = 0; index < this.#header.l1Entries; index += 1) {
      const at = this.#format.tableAt(l1, index)
      if (at === 0 || at % this.#clusterSize !== 0 || at >= this.#file.size) continue
      const entryAt = this.#header.l1At + index * 8
      this.#compareFlag(entryAt, this.#format.owns(l1, index), at, `L1 entry ${index}`)
      if (this.#format.dataFile) continue
      await this.#file.read(table, at)
      for (let entry = 0; entry < l2Entries; entry += 1) {
        this.#format.look(table, entry)
        const { compressed, copied, host } = this.#format
        if (compressed || host === NOWHERE || host >= this.#file.size) continue
        const name = `entry ${entry} of L2 table ${index}`
        this.#compareFlag(at + entry * l2EntryBytes, copied, host, name)
      }
    }
  }

  #compareFlag(entryAt: number, copied: boolean, at: number, name: string): void {
    const single = this.#counts[Math.floor(at / this.#clusterSize)] === 1
    if (single === copied) return
    this.#wrong.add(`${name} says ${copied ? '' : 'not '}that its cluster is used once`)
    if (this.#flags.length < MOST_CLUSTERS) this.#flags.push({ at: entryAt, copied: single })
  }

  /** Notes one reference to each cluster of a range. */
  #refer(at: number, length: number): void {
    if (length === 0) return
    const first = Math.floor(at / this.#clusterSize)
    const last = Math.floor((at + length - 1) / this.#clusterSize)
    if (last >= MOST_CLUSTERS) {
      throw new Fault('NO_MEMORY', `the image has more than ${MOST_CLUSTERS} clusters`, {
        where: this.#file.path,
        remedy: 'check it with qemu-img',
      })
    }
    if (last >= this.#counts.length) {
      const larger = new Uint32Array(
        Math.min(Math.max(last + 1, this.#counts.length * 2), MOST_CLUSTERS),
      )
      larger.set(this.#counts)
      this.#counts = larger
    }
    for (let cluster = first; cluster <= last; cluster += 1) {
      const count = this.#counts[cluster] ?? 0
      this.#counts[cluster] = Math.min(count + 1, 2 ** 32 - 1)
    }
    this.#end = Math.max(this.#end, last + 1)
  }
}
