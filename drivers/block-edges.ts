/**
 * Requests that begin or end within a block, served on a device that takes whole blocks only.
 *
 * Invariants:
 *  - The device below is asked for whole blocks only (the last one may end with the disk).
 *  - Bytes of a block outside the request keep their content; the caller keeps others from changing the block meanwhile.
 */

import { FUA, type BlockDevice, type Extent, type RequestFlags } from '../core/block-device.ts'
import { then, type MaybePromise } from '../core/maybe-promise.ts'

/** A range as a part of its first block, whole blocks, and a part of its last one. Empty parts have no length. */
interface Parts {
  readonly head: number
  readonly middle: number
  readonly tail: number
}

export class BlockEdges {
  readonly #below: BlockDevice

  constructor(below: BlockDevice) {
    this.#below = below
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    const { head, middle, tail } = this.#split(at, into.length)
    return then(head === 0 ? undefined : this.#readPart(into.subarray(0, head), at), () =>
      then(
        middle === 0 ? undefined : this.#below.read(into.subarray(head, head + middle), at + head),
        () =>
          tail === 0 ? undefined : this.#readPart(into.subarray(head + middle), at + head + middle),
      ),
    )
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    const { head, middle, tail } = this.#split(at, from.length)
    const middleEnd = head + middle
    return then(head === 0 ? undefined : this.#writePart(from.subarray(0, head), at, flags), () =>
      then(
        middle === 0
          ? undefined
          : this.#below.write(from.subarray(head, middleEnd), at + head, flags),
        () =>
          tail === 0 ? undefined : this.#writePart(from.subarray(middleEnd), at + middleEnd, flags),
      ),
    )
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const { head, middle, tail } = this.#split(at, length)
    const zeroes = Buffer.alloc(Math.max(head, tail))
    return then(
      head === 0 ? undefined : this.#writePart(zeroes.subarray(0, head), at, flags & FUA),
      () =>
        then(middle === 0 ? undefined : this.#below.zero(at + head, middle, flags), () =>
          tail === 0
            ? undefined
            : this.#writePart(zeroes.subarray(0, tail), at + head + middle, flags & FUA),
        ),
    )
  }

  /** The extents of the whole blocks around the range, cut to it. */
  status(at: number, length: number): MaybePromise<Extent[]> {
    const { start, end } = this.#around(at, length)
    return then(this.#below.status(start, end - start), (extents) =>
      extents
        .map((extent) => {
          const from = Math.max(extent.at, at)
          const to = Math.min(extent.at + extent.length, at + length)
          return { ...extent, at: from, length: to - from }
        })
        .filter((extent) => extent.length > 0),
    )
  }

  /** Reads less than a block. */
  #readPart(into: Buffer, at: number): MaybePromise<void> {
    const { start, end } = this.#around(at, into.length)
    const block = Buffer.allocUnsafe(end - start)
    return then(this.#below.read(block, start), () => {
      block.copy(into, 0, at - start, at - start + into.length)
    })
  }

  /** Changes less than a block. */
  #writePart(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    const { start, end } = this.#around(at, from.length)
    const block = Buffer.allocUnsafe(end - start)
    return then(this.#below.read(block, start), () => {
      from.copy(block, at - start)
      return this.#below.write(block, start, flags)
    })
  }

  #around(at: number, length: number): { start: number; end: number } {
    const { size, block } = this.#below.geometry
    const start = Math.floor(at / block.min) * block.min
    const end = Math.min(Math.ceil((at + length) / block.min) * block.min, size)
    return { start, end }
  }

  #split(at: number, length: number): Parts {
    const { size, block } = this.#below.geometry
    const end = at + length
    const middleStart = Math.ceil(at / block.min) * block.min
    // The disk's end counts as a boundary.
    const middleEnd = end === size ? size : Math.floor(end / block.min) * block.min
    if (middleStart > end) return { head: length, middle: 0, tail: 0 }
    return { head: middleStart - at, middle: middleEnd - middleStart, tail: end - middleEnd }
  }
}
