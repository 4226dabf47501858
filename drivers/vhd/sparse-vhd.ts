/**
 * A dynamic or differencing VHD as a device: requests cut at block boundaries, and each part served by the block, by the
 * parent, or by nothing at all (zeroes).
 *
 * Invariants:
 *  - A sector reads as what is in this image if its bit says so, else as the parent has it, else as zeroes; whatever
 *    else is on disk where a bit is clear is never shown.
 *  - A sector's bit is set after its content has been written, so a read beside a write sees the old or the new.
 *  - Requests to different blocks never wait for each other, except for room at the end of the file.
 *  - Where a block is complete or not in the image, a request allocates nothing and finishes at once if the file does.
 */

import {
  FUA,
  NO_HOLE,
  type BlockDevice,
  type Capabilities,
  type Extent,
  type ExtentKind,
  type Geometry,
  type RequestFlags,
} from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { isPromise, then, together, type MaybePromise } from '../../core/maybe-promise.ts'
import { SECTOR } from '../../core/units.ts'
import { bitAt, runEnd } from '../../formats/vhd/bits.ts'
import { blocksOf } from '../../formats/vhd/dynamic-header.ts'
import { DIFFERENCING, type Footer } from '../../formats/vhd/footer.ts'
import { UNUSED } from '../../formats/vhd/layout.ts'
import { resizedFooter } from '../../formats/vhd/resize.ts'
import type { ImageFile } from '../aio/aio-device.ts'
import { joined, mappedStatus } from '../extents.ts'
import type { ImageLayer } from '../image-format.ts'
import { VhdMetadata } from './vhd-metadata.ts'
import type { SparseStructures } from './vhd-structures.ts'

/** Blocks that one status request looks into at most. */
const STATUS_BLOCKS = 64

export class SparseVhd implements ImageLayer {
  geometry: Geometry
  readonly can: Capabilities
  readonly path: string
  readonly #file: ImageFile
  readonly #parent: BlockDevice | undefined
  readonly #meta: VhdMetadata
  readonly #blockSize: number
  #closed: Promise<void> | undefined

  /**
   * @param parent what shows through where a differencing image has nothing; undefined shows zeroes
   */
  private constructor(
    file: ImageFile,
    path: string,
    structures: SparseStructures,
    parent: BlockDevice | undefined,
  ) {
    this.path = path
    this.#file = file
    this.#parent = parent
    this.#meta = new VhdMetadata(file, path, structures, structures.footer.type !== DIFFERENCING)
    this.#blockSize = structures.header.blockSize
    const { geometry, can } = file
    this.geometry = {
      ...geometry,
      size: structures.footer.currentSize,
      block: { ...geometry.block, min: SECTOR },
    }
    this.can = { ...can, status: true, resize: !geometry.readOnly }
  }

  /** Takes over the file and the parent: close() closes both. A failure here leaves them open. */
  static async over(
    file: ImageFile,
    path: string,
    structures: SparseStructures,
    parent: BlockDevice | undefined,
  ): Promise<SparseVhd> {
    const device = new SparseVhd(file, path, structures, parent)
    if (!file.geometry.readOnly) await device.#meta.repairCopy()
    return device
  }

  get footer(): Footer {
    return this.#meta.footer
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    const block = Math.floor(at / this.#blockSize)
    const within = at - block * this.#blockSize
    if (within + into.length <= this.#blockSize) return this.#readWithin(block, within, into)
    return this.#readAcross(into, at)
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    const block = Math.floor(at / this.#blockSize)
    const within = at - block * this.#blockSize
    const work =
      within + from.length <= this.#blockSize
        ? this.#writeWithin(block, within, from)
        : this.#inParts(at, from.length, (part, begin, start, end) =>
            this.#writeWithin(part, begin, from.subarray(start, end)),
          )
    return (flags & FUA) === 0 ? work : then(work, () => this.flush())
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const kept = flags & ~FUA
    const work = this.#oneByOne(at, length, (block, from, to) =>
      this.#zeroIn(block, from, to, kept),
    )
    return (flags & FUA) === 0 ? work : then(work, () => this.flush())
  }

  /** Gives back the space of what is here. What the parent shows stays. */
  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const work = this.#oneByOne(at, length, (block, from, to) =>
      this.#meta.table.at(block) === UNUSED
        ? undefined
        : this.#file.trim(this.#meta.dataAt(block) + from, to - from, 0),
    )
    return (flags & FUA) === 0 ? work : then(work, () => this.flush())
  }

  flush(): MaybePromise<void> {
    if (this.geometry.readOnly) return undefined
    return this.#meta.isDirty ? this.#meta.flush() : this.#file.flush()
  }

  async status(at: number, length: number): Promise<Extent[]> {
    const extents: Extent[] = []
    let looked = 0
    for (let position = at; position < at + length && looked < STATUS_BLOCKS;) {
      const [held] = await this.held(position, at + length - position)
      if (held === undefined) break
      looked += 1
      const parts =
        held.kind === 'data'
          ? await this.#statusHere(held.at, held.length)
          : await this.#statusBelow(held.at, held.length)
      extents.push(...parts)
      const last = extents.at(-1)
      if (last === undefined) break
      position = last.at + last.length
    }
    return joined(extents)
  }

  /** The first extent alone, as long as it is: whatever is within one kind. */
  held(at: number, length: number): MaybePromise<Extent[]> {
    return then(this.#heldFrom(at, at + length), ({ kind, end }) => [
      { at, length: end - at, kind },
    ])
  }

  async resize(size: number): Promise<void> {
    const { header } = this.#meta
    const old = this.geometry.size
    const footer = resizedFooter(this.footer, size)
    const blocks = blocksOf(size, this.#blockSize)
    if (size === old) return
    if (blocks > header.tableEntries) {
      const most = header.tableEntries * this.#blockSize
      throw new Fault('NOT_SUPPORTED', `the block table has no room beyond ${most} bytes`, {
        where: this.path,
        remedy: 'create an image with a larger `maximum`, and copy',
      })
    }
    if (this.#parent !== undefined && this.#parent.geometry.size > old) {
      throw new Fault('NOT_SUPPORTED', 'the parent would show through in what is new', {
        where: this.path,
        remedy: 'commit the image into its parent first, or copy it',
      })
    }
    const within = old % this.#blockSize
    const last = Math.floor(old / this.#blockSize)
    if (within !== 0 && this.#meta.table.at(last) !== UNUSED)
      await this.#file.zero(this.#meta.dataAt(last) + within, this.#blockSize - within, 0)
    await this.#meta.grow(footer, blocks)
    this.geometry = { ...this.geometry, size }
  }

  /** Gives back what the file has behind its last block; for images that nobody uses. */
  cutTail(): Promise<void> {
    return this.#meta.cutTail()
  }

  close(): Promise<void> {
    this.#closed ??= this.#finish()
    return this.#closed
  }

  async #finish(): Promise<void> {
    try {
      if (!this.geometry.readOnly) await this.#meta.finish()
    } finally {
      try {
        await this.#file.close()
      } finally {
        await this.#parent?.close()
      }
    }
  }

  #readWithin(block: number, within: number, into: Buffer): MaybePromise<void> {
    if (this.#meta.table.at(block) === UNUSED)
      return this.#readBelow(into, block * this.#blockSize + within)
    if (this.#meta.isComplete(block))
      return this.#file.read(into, this.#meta.dataAt(block) + within)
    return then(this.#meta.bitmap(block), ({ bytes }) => this.#readRuns(bytes, block, within, into))
  }

  /** Neighbouring blocks that are not here are one read of the parent. */
  #readAcross(into: Buffer, at: number): MaybePromise<void> {
    const end = at + into.length
    const pieces: number[] = [at]
    for (let position = at; position < end;) {
      const block = Math.floor(position / this.#blockSize)
      const next = Math.min((block + 1) * this.#blockSize, end)
      const here = this.#meta.table.at(block) !== UNUSED
      if (here || next === end || this.#meta.table.at(block + 1) !== UNUSED) pieces.push(next)
      position = next
    }
    return together(pieces.length - 1, (index) => {
      const from = pieces[index] ?? at
      const part = into.subarray(from - at, (pieces[index + 1] ?? end) - at)
      const block = Math.floor(from / this.#blockSize)
      return this.#readWithin(block, from - block * this.#blockSize, part)
    })
  }

  /** Part of a block that is partly here. */
  #readRuns(bitmap: Buffer, block: number, within: number, into: Buffer): MaybePromise<void> {
    const first = within / SECTOR
    const last = first + into.length / SECTOR
    const ends: number[] = [first]
    for (let sector = first; sector < last;) {
      sector = runEnd(bitmap, sector, last)
      ends.push(sector)
    }
    const data = this.#meta.dataAt(block)
    const here = bitAt(bitmap, first)
    return together(ends.length - 1, (index) => {
      const from = (ends[index] ?? first) * SECTOR
      const to = (ends[index + 1] ?? last) * SECTOR
      const part = into.subarray(from - within, to - within)
      return (index % 2 === 0) === here
        ? this.#file.read(part, data + from)
        : this.#readBelow(part, block * this.#blockSize + from)
    })
  }

  #readBelow(into: Buffer, at: number): MaybePromise<void> {
    const size = this.#parent?.geometry.size ?? 0
    if (this.#parent === undefined || at >= size) {
      into.fill(0)
      return
    }
    if (at + into.length <= size) return this.#parent.read(into, at)
    into.fill(0, size - at)
    return this.#parent.read(into.subarray(0, size - at), at)
  }

  #writeWithin(block: number, within: number, from: Buffer): MaybePromise<void> {
    if (this.#meta.table.at(block) === UNUSED)
      return then(this.#meta.allocate(block), () => this.#writeHere(block, within, from))
    return this.#writeHere(block, within, from)
  }

  #writeHere(block: number, within: number, from: Buffer): MaybePromise<void> {
    const at = this.#meta.dataAt(block) + within
    if (this.#meta.isComplete(block)) return this.#file.write(from, at, 0)
    return this.#meta.changing(block, within, within + from.length, () =>
      this.#file.write(from, at, 0),
    )
  }

  #zeroIn(block: number, from: number, to: number, flags: RequestFlags): MaybePromise<void> {
    const isThere = this.#meta.table.at(block) !== UNUSED
    if (!isThere && this.#parent === undefined && (flags & NO_HOLE) === 0) return undefined
    return then(isThere ? undefined : this.#meta.allocate(block), () =>
      this.#meta.changing(block, from, to, () =>
        this.#file.zero(this.#meta.dataAt(block) + from, to - from, flags),
      ),
    )
  }

  /** Runs `visit` for each part of a range side by side: few parts, as a request is no longer than `block.max`. */
  #inParts(
    at: number,
    length: number,
    visit: (block: number, within: number, start: number, end: number) => MaybePromise<void>,
  ): MaybePromise<void> {
    const first = Math.floor(at / this.#blockSize)
    const last = Math.floor((at + length - 1) / this.#blockSize)
    return together(last - first + 1, (index) => {
      const block = first + index
      const start = Math.max(block * this.#blockSize, at)
      const end = Math.min((block + 1) * this.#blockSize, at + length)
      return visit(block, start - block * this.#blockSize, start - at, end - at)
    })
  }

  /** Runs `visit` for one block of a range after the other: the range may be the whole disk. */
  #oneByOne(
    at: number,
    length: number,
    visit: (block: number, from: number, to: number) => MaybePromise<void>,
  ): MaybePromise<void> {
    const end = at + length
    const step = (begin: number): MaybePromise<void> => {
      for (let position = begin; position < end;) {
        const block = Math.floor(position / this.#blockSize)
        const base = block * this.#blockSize
        const stop = Math.min(base + this.#blockSize, end)
        const work = visit(block, position - base, stop - base)
        if (isPromise(work)) return work.then(() => step(stop))
        position = stop
      }
      return undefined
    }
    return step(at)
  }

  /** What the sector at `at` is, and where that ends. */
  #heldFrom(at: number, limit: number): MaybePromise<{ kind: ExtentKind; end: number }> {
    const block = Math.floor(at / this.#blockSize)
    const base = block * this.#blockSize
    const stop = Math.min(base + this.#blockSize, limit)
    if (this.#meta.table.at(block) === UNUSED) {
      let next = block + 1
      while (next * this.#blockSize < limit && this.#meta.table.at(next) === UNUSED) next += 1
      return { kind: 'hole', end: Math.min(next * this.#blockSize, limit) }
    }
    if (this.#meta.isComplete(block)) return { kind: 'data', end: stop }
    return then(this.#meta.bitmap(block), ({ bytes }) => {
      const sector = Math.floor((at - base) / SECTOR)
      const end = runEnd(bytes, sector, Math.ceil((stop - base) / SECTOR))
      return {
        kind: bitAt(bytes, sector) ? 'data' : 'hole',
        end: Math.min(base + end * SECTOR, stop),
      }
    })
  }

  #statusHere(at: number, length: number): MaybePromise<Extent[]> {
    if (!this.#file.can.status) return [{ at, length, kind: 'data' }]
    const block = Math.floor(at / this.#blockSize)
    const place = this.#meta.dataAt(block) + at - block * this.#blockSize
    return mappedStatus(this.#file, place, length, at - place)
  }

  #statusBelow(at: number, length: number): MaybePromise<Extent[]> {
    const size = this.#parent?.geometry.size ?? 0
    if (this.#parent === undefined || at >= size) return [{ at, length, kind: 'hole' }]
    const part = Math.min(length, size - at)
    if (!this.#parent.can.status) return [{ at, length: part, kind: 'data' }]
    return this.#parent.status(at, part)
  }
}
