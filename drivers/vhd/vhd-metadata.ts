/**
 * What a sparse VHD knows about its blocks, and the order in which the file gets to know it.
 *
 * Invariants:
 *  - The file is told of data only after the data is durable: a flush first makes durable what was written (data, new
 *    room, footers, bitmaps of new blocks), then writes the block table and the other bitmaps, then makes those durable.
 *  - So after a crash a block is either in the image, with at least every flushed sector, or it is not in it; a sector
 *    shows what was written to it or what was there before (the parent, or zeroes), and nothing else.
 *  - The batmap says less than the bitmaps, never more; it is written when the image is closed.
 */

import { isPromise, then, together, type MaybePromise } from '../../core/maybe-promise.ts'
import { SECTOR } from '../../core/units.ts'
import {
  BATMAP_HEADER,
  batmapCoverage,
  newBatmapHeader,
  type BatmapHeader,
} from '../../formats/vhd/batmap.ts'
import { allSet, bitAt, setBit, setBits } from '../../formats/vhd/bits.ts'
import { bitmapSize, type DynamicHeader } from '../../formats/vhd/dynamic-header.ts'
import { footerBytes, type Footer } from '../../formats/vhd/footer.ts'
import { batmapHeaderOffset, endOf, endOfBlocks, UNUSED } from '../../formats/vhd/layout.ts'
import type { ImageFile } from '../aio/aio-device.ts'
import { BitmapCache, using, type Bitmap } from './bitmap-cache.ts'
import { BlockTable, type TableSector } from './block-table.ts'
import { Slots } from './slots.ts'
import type { SparseStructures } from './vhd-structures.ts'

/** What one flush writes. */
interface Batch {
  readonly sectors: readonly TableSector[]
  readonly bitmaps: readonly Bitmap[]
  readonly filled: readonly number[]
}

export class VhdMetadata {
  readonly table: BlockTable
  readonly header: DynamicHeader
  footer: Footer
  readonly #file: ImageFile
  readonly #bitmapSize: number
  readonly #sectorsPerBlock: number
  /** New blocks are wholly in the image at once, because no parent shows through: what was not written is zero. */
  readonly #filled: boolean
  /** A bit for each block that is wholly in the image: its bitmap need not be looked at. */
  #complete: Uint8Array
  #completeChanged = false
  /** New complete blocks whose bitmaps the file lacks. */
  readonly #newlyFilled = new Set<number>()
  readonly #bitmaps: BitmapCache
  readonly #slots: Slots
  readonly #allocating = new Map<number, Promise<void>>()
  readonly #batmap: BatmapHeader | undefined
  #footersAgree: boolean
  #flushing: Promise<void> | undefined
  #nextFlush: Promise<void> | undefined

  /** @param filled whether new blocks are complete from the start */
  constructor(file: ImageFile, path: string, structures: SparseStructures, filled: boolean) {
    const { footer, header, table, complete, batmap, areas, footersAgree } = structures
    const { blockSize } = header
    this.footer = footer
    this.header = header
    this.table = new BlockTable(table)
    this.#file = file
    this.#filled = filled
    this.#bitmapSize = bitmapSize(blockSize)
    this.#sectorsPerBlock = blockSize / SECTOR
    this.#complete = complete
    this.#bitmaps = new BitmapCache(file, this.#bitmapSize)
    this.#batmap = batmap
    this.#footersAgree = footersAgree
    this.#slots = new Slots(file, {
      path,
      blockSize,
      end: endOfBlocks(table, blockSize, endOf(areas)),
      wanted: table.reduce((count, entry) => (entry === UNUSED ? count + 1 : count), 0),
      hasFooter: footersAgree,
      footer: () => footerBytes(this.footer),
    })
  }

  /** Before the first change: the copy of the footer must be there whenever the end of the file is on the move. */
  async repairCopy(): Promise<void> {
    if (this.#footersAgree) return
    await this.#file.write(footerBytes(this.footer), 0, 0)
    await this.#file.flush()
  }

  isComplete(block: number): boolean {
    return bitAt(this.#complete, block)
  }

  /** The byte where the data of a block begin that is in the image. */
  dataAt(block: number): number {
    return this.table.at(block) * SECTOR + this.#bitmapSize
  }

  /** The sector bitmap of a block that is in the image. */
  bitmap(block: number): MaybePromise<Bitmap> {
    return this.#bitmaps.get(block, this.table.at(block) * SECTOR)
  }

  /** Brings a block into the image; whoever else wants the same one meanwhile gets that one. */
  allocate(block: number): MaybePromise<void> {
    const allocating = this.#allocating.get(block)
    if (allocating !== undefined) return allocating
    const slot = this.#slots.take()
    if (!isPromise(slot)) {
      this.#place(block, slot)
      return
    }
    const placed = slot
      .then((at) => this.#place(block, at))
      .finally(() => this.#allocating.delete(block))
    this.#allocating.set(block, placed)
    return placed
  }

  /** Runs `work`, which gives content to sectors of a block that is in the image, and then says that they have it. */
  changing(
    block: number,
    from: number,
    to: number,
    work: () => MaybePromise<void>,
  ): MaybePromise<void> {
    if (this.isComplete(block)) return work()
    if (this.#bitmaps.isCrowded)
      return this.flush().then(() => this.changing(block, from, to, work))
    return using(this.bitmap(block), (bitmap) =>
      then(work(), () => this.#mark(bitmap, from / SECTOR, to / SECTOR)),
    )
  }

  /** Whether a flush has more to do than to make data durable. */
  get isDirty(): boolean {
    return (
      this.table.hasDirty ||
      this.#bitmaps.hasDirty ||
      this.#newlyFilled.size > 0 ||
      this.#flushing !== undefined
    )
  }

  /** Everything that completed before is durable when it resolves. */
  flush(): Promise<void> {
    if (this.#flushing === undefined) {
      this.#flushing = this.#flushOnce().finally(() => {
        this.#flushing = undefined
      })
      return this.#flushing
    }
    // The one in progress may have begun too early; the next one begins after this call.
    this.#nextFlush ??= this.#flushing.then(this.#followingFlush, this.#followingFlush)
    return this.#nextFlush
  }

  /** Entries, footers and geometry for a disk of `blocks` blocks, in an order in which either footer is right. */
  async grow(footer: Footer, blocks: number): Promise<void> {
    await this.flush()
    const { length } = this.table
    this.table.grow(blocks)
    const complete = new Uint8Array(Math.ceil(blocks / 8))
    complete.set(this.#complete)
    this.#complete = complete
    this.#slots.want(blocks - length)
    // Whatever stands in the table behind the disk's blocks, it is no block.
    const perSector = SECTOR / 4
    for (let index = Math.floor(length / perSector); index * perSector < blocks; index += 1)
      await this.#writeSector(this.table.sector(index))
    await this.#file.flush()
    this.footer = footer
    this.#footersAgree = false
    await this.#file.write(footerBytes(footer), 0, 0)
    await this.#file.flush()
    await this.#slots.rewriteFooter()
    await this.#file.flush()
    this.#footersAgree = true
    this.#completeChanged = true // the batmap's checksum covers what the size says
    await this.#writeBatmap()
  }

  /** Gives back what the file has behind its last block. */
  cutTail(): Promise<void> {
    return this.#slots.cut()
  }

  /** Leaves the file as others expect it: everything durable, a batmap, and equal footers. */
  async finish(): Promise<void> {
    await this.flush()
    if (this.#completeChanged) await this.#writeBatmap()
    await this.#slots.seal()
    await this.#file.flush()
  }

  readonly #followingFlush = (): Promise<void> => {
    this.#nextFlush = undefined
    return this.flush()
  }

  #place(block: number, at: number): void {
    if (this.#filled) {
      this.#newlyFilled.add(block)
      this.#completed(block)
    } else this.#bitmaps.add(block)
    this.table.set(block, at / SECTOR)
  }

  #mark(bitmap: Bitmap, from: number, to: number): void {
    this.#bitmaps.mark(bitmap, from, to)
    if (allSet(bitmap.bytes, this.#sectorsPerBlock)) this.#completed(bitmap.block)
  }

  #completed(block: number): void {
    setBit(this.#complete, block)
    this.#completeChanged = true
  }

  async #flushOnce(): Promise<void> {
    const batch: Batch = {
      sectors: this.table.snapshot(),
      bitmaps: this.#bitmaps.snapshot(),
      filled: [...this.#newlyFilled],
    }
    this.#newlyFilled.clear()
    let failed = true
    try {
      await this.#fill(batch.filled)
      await this.#file.flush()
      await this.#write(batch)
      failed = false
    } finally {
      this.#bitmaps.released(batch.bitmaps, failed)
      if (failed) {
        this.table.failed(batch.sectors)
        for (const block of batch.filled) this.#newlyFilled.add(block)
      }
    }
  }

  /** Together with the data, so that a block which is in the table has its bitmap: QEMU does not look at bitmaps. */
  async #fill(blocks: readonly number[]): Promise<void> {
    const ones = Buffer.from(new ArrayBuffer(this.#bitmapSize))
    setBits(ones, 0, this.#sectorsPerBlock)
    await together(blocks.length, (index) =>
      this.#file.write(ones, this.table.at(blocks[index] ?? 0) * SECTOR, 0),
    )
  }

  async #write({ sectors, bitmaps }: Batch): Promise<void> {
    if (sectors.length + bitmaps.length === 0) return
    await together(bitmaps.length, (index) => {
      const bitmap = bitmaps[index]
      if (bitmap === undefined) return
      return this.#file.write(bitmap.bytes, this.table.at(bitmap.block) * SECTOR, 0)
    })
    await together(sectors.length, (index) => {
      const sector = sectors[index]
      return sector === undefined ? undefined : this.#writeSector(sector)
    })
    await this.#file.flush()
  }

  #writeSector({ index, bytes }: TableSector): MaybePromise<void> {
    return this.#file.write(bytes, this.header.tableOffset + index * SECTOR, 0)
  }

  /** All bits that are durably true, with their checksum. */
  async #writeBatmap(): Promise<void> {
    if (this.#batmap === undefined) return
    const { offset, sectors, marker, reserved } = this.#batmap
    const map = Buffer.alloc(sectors * SECTOR)
    const covered = Math.min(batmapCoverage(this.footer.currentSize), map.length)
    map.set(this.#complete.subarray(0, covered))
    const header = { ...newBatmapHeader(offset, map, covered), marker, reserved }
    await this.#file.write(map, offset, 0)
    await this.#file.write(BATMAP_HEADER.bytesOf(header), batmapHeaderOffset(this.header), 0)
    this.#completeChanged = false
  }
}
