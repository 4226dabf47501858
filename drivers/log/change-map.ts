/**
 * Which blocks of a disk were changed, one bit each. Pure.
 *
 * Invariant: bits beyond the last block are zero.
 */

import type { ChangedRange } from '../../core/change-log.ts'

export class ChangeMap {
  /** Bytes behind one bit. */
  readonly block: number
  #size: number
  #bits: Uint8Array
  #marked = 0

  constructor(size: number, block: number) {
    this.block = block
    this.#size = size
    this.#bits = new Uint8Array(bytesFor(size, block))
  }

  /** Takes over the bits that another map has given. */
  static of(size: number, block: number, bits: Uint8Array): ChangeMap {
    const map = new ChangeMap(size, block)
    map.#bits.set(bits.subarray(0, map.#bits.length))
    const last = Math.ceil(size / block)
    for (let index = last; index < map.#bits.length * 8; index += 1) map.#clear(index)
    map.#marked = 0
    for (const byte of map.#bits) map.#marked += ONES[byte] ?? 0
    return map
  }

  /** Of the disk, in bytes. */
  get size(): number {
    return this.#size
  }

  /** Eight blocks a byte, the first in the lowest bit. */
  get bits(): Uint8Array {
    return this.#bits
  }

  /** Bytes in changed blocks; the last block counts whole. */
  get changedBytes(): number {
    return this.#marked * this.block
  }

  mark(at: number, length: number): void {
    const end = Math.ceil((at + length) / this.block)
    for (let index = Math.floor(at / this.block); index < end; index += 1) {
      if (index % 8 === 0 && end - index >= 8) {
        this.#marked += 8 - (ONES[this.#bits[index >> 3] ?? 0] ?? 0)
        this.#bits[index >> 3] = 0xff
        index += 7
        continue
      }
      const byte = this.#bits[index >> 3] ?? 0
      const bit = 1 << (index & 7)
      if ((byte & bit) !== 0) continue
      this.#bits[index >> 3] = byte | bit
      this.#marked += 1
    }
  }

  markAll(): void {
    if (this.#size > 0) this.mark(0, this.#size)
  }

  /** Adds what `other`, a map of the same blocks, has marked. */
  add(other: ChangeMap): void {
    this.#marked = 0
    for (let index = 0; index < this.#bits.length; index += 1) {
      const byte = (this.#bits[index] ?? 0) | (other.#bits[index] ?? 0)
      this.#bits[index] = byte
      this.#marked += ONES[byte] ?? 0
    }
  }

  /** The disk has another size. What it gained counts as changed. */
  resize(size: number): void {
    const before = this.#size
    const resized = ChangeMap.of(size, this.block, this.#bits)
    this.#size = size
    this.#bits = resized.#bits
    this.#marked = resized.#marked
    if (size > before) this.mark(before, size - before)
  }

  /** The first changed range at or after byte `from`, or undefined; it ends with the disk, not with a block. */
  next(from: number): ChangedRange | undefined {
    if (from >= this.#size) return undefined
    const count = Math.ceil(this.#size / this.block)
    let first = Math.floor(from / this.block)
    while (first < count && !this.#has(first)) {
      first += first % 8 === 0 && this.#bits[first >> 3] === 0 ? 8 : 1
    }
    if (first >= count) return undefined
    let end = first + 1
    while (end < count && this.#has(end)) {
      end += end % 8 === 0 && this.#bits[end >> 3] === 0xff ? 8 : 1
    }
    const at = Math.max(from, first * this.block)
    return { at, length: Math.min(end * this.block, this.#size) - at }
  }

  #has(index: number): boolean {
    return ((this.#bits[index >> 3] ?? 0) & (1 << (index & 7))) !== 0
  }

  #clear(index: number): void {
    this.#bits[index >> 3] = (this.#bits[index >> 3] ?? 0) & ~(1 << (index & 7))
  }
}

/** Bytes of a map of so many blocks. */
export function bytesFor(size: number, block: number): number {
  return Math.ceil(size / block / 8)
}

/** How many bits of a byte are set. */
const ONES = Uint8Array.from(
  { length: 256 },
  (_, byte) => byte.toString(2).replaceAll('0', '').length,
)
