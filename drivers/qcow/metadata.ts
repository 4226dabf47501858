/**
 * The metadata of an image that is open for writing: what is in memory, and the order in which it reaches the disk.
 *
 * A commit makes the state of one instant durable (`->` is a flush of the file):
 *
 *     new refcount blocks -> refcount table entries, changed refcount blocks, new L2 tables -> L2 entries, L1 entries ->
 *     and only then do clusters that lost a reference get their lower count, and are used again.
 *
 * The file's data was written before its L2 entry changed in memory, so the second flush covers it. Therefore, whenever
 * the power fails: an entry on disk maps a cluster whose refcount and content are there; a cluster that an entry on disk
 * may still map belongs to nobody else. All that a crash can leave are clusters that are counted and not used (leaks).
 *
 * Invariants:
 *  - Commits run one at a time. A flush joins a commit only if that has not begun.
 *  - What changes while a commit runs belongs to the next one: a commit writes copies made in one turn.
 *  - A cluster is dropped after the commit that covers its loss of a reference, and when no request that began before is
 *    still on its way to it.
 */

import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import type { Logger } from '../../core/logger.ts'
import { SECTOR } from '../../core/units.ts'
import type { Allocator } from './allocator.ts'
import { allEnded, type HostFile } from './host-file.ts'
import type { InFlight } from './in-flight.ts'
import type { MappingCut, MappingTables, TableCopy } from './mapping-tables.ts'
import type { RefcountBlocks } from './refcount-blocks.ts'
import type { Serial } from './serial.ts'

/** Clusters that wait for a commit before they are free; more make a commit start by itself. */
const MOST_UNUSED_RUNS = 4096
const MOST_UNUSED_BYTES = 256 * 1024 * 1024

export interface Refcounts {
  readonly blocks: RefcountBlocks
  readonly allocator: Allocator
}

interface UnusedRun {
  readonly at: number
  clusters: number
}

export interface MetadataOptions {
  readonly file: HostFile
  readonly order: Serial
  readonly inFlight: InFlight
  readonly logger: Logger
  /** Flushes guest data that is not in the image file. */
  readonly flushData: () => MaybePromise<void>
}

export class Metadata {
  readonly mapping: MappingTables
  readonly #options: MetadataOptions
  readonly #refcounts: Refcounts | undefined
  readonly #clusterSize: number
  #unused: UnusedRun[] = []
  #unusedBytes = 0
  #nextCommit: Promise<void> | undefined
  #dropping: Promise<void> = Promise.resolve()
  #running = 0

  /** @param refcounts undefined in version 1, where nothing is ever taken back */
  constructor(
    mapping: MappingTables,
    refcounts: Refcounts | undefined,
    clusterSize: number,
    options: MetadataOptions,
  ) {
    this.mapping = mapping
    this.#refcounts = refcounts
    this.#clusterSize = clusterSize
    this.#options = options
  }

  /** Whether something in memory is not on its way to the disk. */
  get #dirty(): boolean {
    return this.mapping.dirty || this.#refcounts?.blocks.dirty === true || this.#unused.length > 0
  }

  /** Clusters lost one reference each. They are taken back when what is in memory now is on stable storage. */
  unused(at: number, clusters: number): void {
    if (this.#refcounts === undefined) return
    const last = this.#unused.at(-1)
    if (last !== undefined && last.at + last.clusters * this.#clusterSize === at)
      last.clusters += clusters
    else this.#unused.push({ at, clusters })
    this.#unusedBytes += clusters * this.#clusterSize
  }

  /** Whether so many clusters wait for a commit that the caller should wait for one, too. */
  get pressed(): boolean {
    return this.#unused.length > MOST_UNUSED_RUNS || this.#unusedBytes > MOST_UNUSED_BYTES
  }

  /** Makes everything durable that completed before this call. */
  flush(): MaybePromise<void> {
    if (this.#dirty) return this.commit()
    // A commit that is under way may hold what completed before this call.
    if (this.#nextCommit !== undefined || this.#running > 0) return this.commit()
    const data = this.#options.flushData()
    const file = this.#options.file.flush()
    if (isPromise(data) || isPromise(file)) return allEnded([data, file])
    return undefined
  }

  /** Runs work on the metadata of the file that no commit may run beside. */
  inOrder<T>(work: () => Promise<T>): Promise<T> {
    return this.#options.order.run(work)
  }

  commit(): Promise<void> {
    this.#nextCommit ??= this.#options.order.run(() => {
      this.#nextCommit = undefined
      return this.#commit()
    })
    return this.#nextCommit
  }

  /** Commits, and takes back what that allows. */
  async relieve(): Promise<void> {
    await this.commit()
    await this.#dropping
  }

  /** Commits until nothing is left to be taken back or written. */
  async settle(): Promise<void> {
    do {
      await this.commit()
      await this.#dropping
    } while (this.#dirty)
  }

  async #commit(): Promise<void> {
    this.#running += 1
    const unused = this.#unused
    const unusedBytes = this.#unusedBytes
    this.#unused = []
    this.#unusedBytes = 0
    const cut = this.mapping.cut()
    try {
      await this.#write(cut)
      this.mapping.settle(cut, true)
      if (unused.length > 0) this.#dropLater(unused)
    } catch (error) {
      this.mapping.settle(cut, false)
      this.#unused = [...unused, ...this.#unused]
      this.#unusedBytes += unusedBytes
      throw error
    } finally {
      this.#running -= 1
    }
  }

  async #write({ unnamed, named, l1 }: MappingCut): Promise<void> {
    const { file, flushData } = this.#options
    await this.#refcounts?.blocks.writeNew()
    await this.#refcounts?.blocks.writeChanged()
    await this.#writeTables(unnamed)
    await flushData()
    await file.flush()
    if (named.length === 0 && l1.size === 0) return
    await this.#writeTables(named)
    await allEnded(
      [...l1].map(async ([sector, bytes]) => {
        await file.write(bytes, this.mapping.l1At + sector * SECTOR)
      }),
    )
    await file.flush()
  }

  async #writeTables(copies: readonly TableCopy[]): Promise<void> {
    const { file } = this.#options
    await allEnded(
      copies.map(async ({ table, from, bytes }) => {
        await file.write(bytes, table.at + from)
      }),
    )
  }

  #dropLater(unused: readonly UnusedRun[]): void {
    const quiet = this.#options.inFlight.quiet()
    this.#dropping = this.#dropping.then(async () => {
      await quiet
      for (const { at, clusters } of unused) {
        try {
          await this.#refcounts?.allocator.drop(at, clusters)
        } catch (error) {
          // They stay counted: space is lost until the image is repaired, nothing else.
          const { path } = this.#options.file
          this.#options.logger.warn({ err: error, path, at, clusters }, 'clusters stay allocated')
        }
      }
    })
  }
}
