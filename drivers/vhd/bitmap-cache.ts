/**
 * The sector bitmaps of blocks that are only partly in the image: as many as fit a fixed amount of memory.
 *
 * Invariants:
 *  - There is at most one copy of a bitmap in memory, and it is the truth: the file has it, or an older one of which
 *    every bit is set in it as well (bits are set and never cleared).
 *  - A bitmap with bits that the file lacks stays until snapshot() has been written; so does one that is in use.
 */

import { assert } from '../../core/assert.ts'
import { ensure, then, type MaybePromise } from '../../core/maybe-promise.ts'
import { MiB } from '../../core/units.ts'
import { setBits } from '../../formats/vhd/bits.ts'
import type { ImageFile } from '../aio/aio-device.ts'

const MEMORY = 8 * MiB
const FEWEST = 16

export class Bitmap {
  readonly block: number
  readonly bytes: Buffer
  /** Has bits that are not on their way to the file. */
  dirty = false
  /** Requests that will come back to it. */
  users = 0

  constructor(block: number, bytes: Buffer) {
    this.block = block
    this.bytes = bytes
  }
}

export class BitmapCache {
  readonly #file: ImageFile
  readonly #size: number
  readonly #limit: number
  /** The longest unused one first. */
  readonly #bitmaps = new Map<number, Bitmap>()
  readonly #loading = new Map<number, Promise<Bitmap>>()
  readonly #dirty = new Set<Bitmap>()

  /** @param size bytes of a bitmap */
  constructor(file: ImageFile, size: number) {
    this.#file = file
    this.#size = size
    this.#limit = Math.max(FEWEST, Math.floor(MEMORY / size))
  }

  get hasDirty(): boolean {
    return this.#dirty.size > 0
  }

  /** Whether bitmaps must be written before more are taken in. */
  get isCrowded(): boolean {
    return this.#dirty.size >= this.#limit
  }

  /** The bitmap of a block, which is at byte `at`. */
  get(block: number, at: number): MaybePromise<Bitmap> {
    const bitmap = this.#bitmaps.get(block)
    if (bitmap === undefined) return this.#loading.get(block) ?? this.#load(block, at)
    this.#bitmaps.delete(block)
    this.#bitmaps.set(block, bitmap)
    return bitmap
  }

  /** The bitmap of a new block, in which nothing is set, in the file neither. */
  add(block: number): void {
    assert(!this.#bitmaps.has(block) && !this.#loading.has(block), 'a new block has no bitmap yet')
    this.#insert(new Bitmap(block, Buffer.alloc(this.#size)))
  }

  mark(bitmap: Bitmap, from: number, to: number): void {
    setBits(bitmap.bytes, from, to)
    bitmap.dirty = true
    this.#dirty.add(bitmap)
  }

  /** Copies of all bitmaps that the file lacks; they count as written until restore() takes that back. */
  snapshot(): readonly Bitmap[] {
    const copies = [...this.#dirty].map(
      (bitmap) => new Bitmap(bitmap.block, Buffer.from(bitmap.bytes)),
    )
    for (const bitmap of this.#dirty) {
      bitmap.dirty = false
      bitmap.users += 1 // until released(): the file must not be read for it meanwhile
    }
    this.#dirty.clear()
    return copies
  }

  /** The copies were written, or, with `failed`, must be written again. */
  released(copies: readonly Bitmap[], failed: boolean): void {
    for (const { block } of copies) {
      const bitmap = this.#bitmaps.get(block)
      assert(bitmap !== undefined, 'a bitmap in use stays')
      bitmap.users -= 1
      if (!failed) continue
      bitmap.dirty = true
      this.#dirty.add(bitmap)
    }
    this.#shrink()
  }

  #load(block: number, at: number): Promise<Bitmap> {
    const bytes = Buffer.from(new ArrayBuffer(this.#size))
    const loading = (async (): Promise<Bitmap> => {
      try {
        await this.#file.read(bytes, at)
        const bitmap = new Bitmap(block, bytes)
        this.#insert(bitmap)
        return bitmap
      } finally {
        this.#loading.delete(block)
      }
    })()
    this.#loading.set(block, loading)
    return loading
  }

  #insert(bitmap: Bitmap): void {
    this.#shrink()
    this.#bitmaps.set(bitmap.block, bitmap)
  }

  #shrink(): void {
    if (this.#bitmaps.size < this.#limit) return
    for (const [block, bitmap] of this.#bitmaps) {
      if (bitmap.dirty || bitmap.users > 0) continue
      this.#bitmaps.delete(block)
      if (this.#bitmaps.size < this.#limit) return
    }
  }
}

/** Runs `work` with a bitmap that stays in memory meanwhile. */
export function using(
  bitmap: MaybePromise<Bitmap>,
  work: (bitmap: Bitmap) => MaybePromise<void>,
): MaybePromise<void> {
  return then(bitmap, (held) => {
    held.users += 1
    return ensure(
      () => work(held),
      () => {
        held.users -= 1
      },
    )
  })
}
