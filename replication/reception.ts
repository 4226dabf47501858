/**
 * Where received data is kept until it is in the images: in memory, and, once that is filled to a limit, only in the
 * journal, where it goes anyway; the memory then has no more than an index of its places (ramdisk/spilled-epoch.ts).
 *
 * Invariants:
 *  - 20 Data and indexes stay within the group's memory. What is left beside the data's part is for indexes, also where
 *    guests here write: without it the epoch that ends their claim could not be received.
 *  - An epoch that fits into the data's part is never looked for in the journal.
 *  - Data that is in memory nowhere is in the journal, or the link that brought it ends, and with it its epoch.
 */

import { Fault } from '../core/fault.ts'
import { formatSize } from '../core/units.ts'
import type { DiskLayers } from '../ramdisk/disk-layers.ts'
import { SLAB, type PageMemory } from '../ramdisk/page-memory.ts'
import type { EpochKeeper } from './epoch-keeper.ts'
import { PUNCH, type Frame } from './machine/frame.ts'

/** The part of the memory that a secondary speaks of as its capacity, and measures pressure by; the rest is for indexes. */
export const CAPACITY_PART = 0.85
/** The part of the memory that data may fill before what comes is spilled. */
const DATA_PART = 0.75
/** The part of the memory that the secondary's own guests may fill with data. */
const LOCAL_PART = 0.425

export interface ReceptionContext {
  readonly memory: PageMemory
  /** Bytes of memory in use beyond which what comes is spilled; undefined: the usual part. */
  readonly spillBytes: number | undefined
  readonly log: () => EpochKeeper
  readonly disks: readonly { readonly layers: DiskLayers }[]
}

export class Reception {
  readonly #context: ReceptionContext
  readonly #spillBytes: number

  constructor(context: ReceptionContext) {
    this.#context = context
    const { limit } = context.memory
    // Where data fits, a place for it in an index is to be had as well.
    this.#spillBytes = Math.min(context.spillBytes ?? limit * DATA_PART, limit - SLAB)
  }

  /** Whether a frame with so many bytes of data can be stored now. */
  hasRoom(bytes: number): boolean {
    const { memory } = this.#context
    const log = this.#context.log()
    return (
      log.hasRoom && (log.records === undefined ? memory.canHold(bytes) : memory.canIndex(bytes))
    )
  }

  /**
   * Calls `wake` once when there may be more room: committed epochs give it back once they are in the images.
   * @returns false when there are none, so that waiting would be for ever
   */
  awaitRoom(wake: () => void): boolean {
    if (this.#context.log().awaitWritten(wake)) return true
    if (!this.#context.disks.some(({ layers }) => layers.isBusy)) return false
    this.#context.memory.whenReleased(wake)
    return true
  }

  /** What there is no room in, for people, with the setting that says how much there is. */
  get lack(): string {
    const { memory } = this.#context
    const log = this.#context.log()
    if (!log.hasRoom) return `its journal, of ${formatSize(log.limit)} (journal=)`
    const held = formatSize(this.localBytes)
    const own = `of ${formatSize(memory.limit)} (memory=), of which its own guests hold ${held}`
    return log.records === undefined
      ? `its memory, ${own}`
      : `its memory for the index of its journal, ${own}`
  }

  /** Bytes that the guests here may hold in memory, all disks together. */
  get localLimit(): number {
    return Math.floor(this.#context.memory.limit * LOCAL_PART)
  }

  get localBytes(): number {
    return this.#context.disks.reduce((sum, { layers }) => sum + layers.localBytes, 0)
  }

  /**
   * Whether the guests here may hold so many bytes more. The rest of the memory is the primary's: without it there would never be
   * the checkpoint that frees this part.
   */
  hasLocalRoom(bytes: number): boolean {
    const { memory, log } = this.#context
    if (this.localBytes + bytes > this.localLimit) return false
    return memory.canHold(
      bytes,
      log().records === undefined ? memory.limit : memory.limit * DATA_PART,
    )
  }

  /** Bytes of epochs that are in the journal and not in memory. */
  get spilledBytes(): number {
    return this.#context.disks.reduce((sum, { layers }) => sum + layers.spilledBytes, 0)
  }

  /** Stores data for which hasRoom() has said yes. @throws Fault to end the link */
  store(layers: DiskLayers, record: Readonly<Frame>): void {
    const { type, payload, position, extent, flags } = record
    const log = this.#context.log()
    const punch = (flags & PUNCH) !== 0
    if (log.records !== undefined && this.#mustSpill(layers, payload.length)) {
      const place = log.append(record)
      if (place === undefined) throw new Fault('IO', 'the journal cannot be written')
      if (type === 'write') layers.spillWrite(position, payload.length, place, log.records)
      else layers.spillZero(position, extent, punch, log.records)
      return
    }
    if (type === 'write') layers.receiveWrite(payload, position)
    else layers.receiveZero(position, extent, punch)
    log.append(record)
  }

  #mustSpill(layers: DiskLayers, bytes: number): boolean {
    return layers.isSpilling || !this.#context.memory.canHold(bytes, this.#spillBytes)
  }
}
