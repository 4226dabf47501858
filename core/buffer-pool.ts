/**
 * Recycled buffers for the data path, in shared memory so that an I/O thread can fill and drain them without a copy.
 *
 * Invariants:
 *  - `bytesInUse` is the sum of the size classes handed out and not yet released; it never exceeds `limit`.
 *  - A slot is released exactly once; its memory is never given to two holders at a time.
 *  - Memory that was touched once is reused before new memory is taken (first touch is the slow part).
 */

import { assert } from './assert.ts'
import { KiB, MiB } from './units.ts'

const SMALLEST = 4 * KiB
const SLAB = 1 * MiB

/** A part of a slot, as a Buffer object that is made once for requests alike. */
class Part {
  at = 0
  bytes: Buffer

  constructor(bytes: Buffer) {
    this.bytes = bytes
  }
}

/** A piece of pooled memory. `bytes` is the whole size class; use `first(length)` for the part that was asked for. */
export class PoolSlot {
  readonly bytes: Buffer
  /** Held by somebody; only the pool changes it. */
  held = false
  /** A request uses at most two parts: its data, and its data behind a header. */
  #recent: Part
  #other: Part

  constructor(bytes: Buffer) {
    this.bytes = bytes
    this.#recent = new Part(bytes)
    this.#other = new Part(bytes)
  }

  /** The first `length` bytes. */
  first(length: number): Buffer {
    return this.part(0, length)
  }

  /** `length` bytes from `at`. */
  part(at: number, length: number): Buffer {
    let part = this.#recent
    if (part.at === at && part.bytes.length === length) return part.bytes
    part = this.#other
    this.#other = this.#recent
    this.#recent = part
    if (part.at !== at || part.bytes.length !== length) {
      part.at = at
      part.bytes = this.bytes.subarray(at, at + length)
    }
    return part.bytes
  }
}

export class BufferPool {
  readonly limit: number
  #free = new Map<number, PoolSlot[]>()
  #inUse = 0
  #allocated = 0
  #waiting: (() => void)[] = []

  /** @param limit bytes that may be handed out at a time */
  constructor(limit: number) {
    this.limit = limit
  }

  get bytesInUse(): number {
    return this.#inUse
  }

  get bytesAllocated(): number {
    return this.#allocated
  }

  /** A slot of at least `length` bytes with unspecified content, or undefined when the limit is reached. */
  tryAcquire(length: number): PoolSlot | undefined {
    const size = sizeClass(length)
    if (this.#inUse + size > this.limit) return undefined
    const list = this.#listOf(size)
    if (list.length === 0) this.#grow(size, list)
    const slot = list.pop()
    assert(slot !== undefined && !slot.held, 'a free slot is held by nobody')
    slot.held = true
    this.#inUse += size
    return slot
  }

  release(slot: PoolSlot): void {
    assert(slot.held, 'a slot is released once')
    slot.held = false
    this.#inUse -= slot.bytes.length
    this.#listOf(slot.bytes.length).push(slot)
    if (this.#waiting.length > 0) {
      const waiting = this.#waiting
      this.#waiting = []
      for (const wake of waiting) wake()
    }
  }

  /** Calls `wake` once, after the next release. Check with tryAcquire again then: others may have been faster. */
  whenReleased(wake: () => void): void {
    this.#waiting.push(wake)
  }

  #listOf(size: number): PoolSlot[] {
    let list = this.#free.get(size)
    if (list === undefined) {
      list = []
      this.#free.set(size, list)
    }
    return list
  }

  /** Adds at least one free slot of `size`; small classes come from shared slabs. */
  #grow(size: number, list: PoolSlot[]): void {
    const slab = Math.max(size, SLAB)
    // Free memory of other classes counts too: drop it before going over the limit by fragmentation.
    if (this.#allocated + slab > this.limit + SLAB * 16) this.#dropFree()
    const memory = new SharedArrayBuffer(slab)
    this.#allocated += slab
    for (let at = 0; at + size <= slab; at += size)
      list.push(new PoolSlot(Buffer.from(memory, at, size)))
  }

  /** Forgets the memory of slabs of which no slot is held. */
  #dropFree(): void {
    for (const [size, list] of this.#free) {
      const freeSlots = new Map<ArrayBufferLike, number>()
      for (const { bytes } of list)
        freeSlots.set(bytes.buffer, (freeSlots.get(bytes.buffer) ?? 0) + 1)
      const isUnused = (memory: ArrayBufferLike) =>
        (freeSlots.get(memory) ?? 0) * size === memory.byteLength
      for (const memory of freeSlots.keys())
        if (isUnused(memory)) this.#allocated -= memory.byteLength
      // In place: the caller may be about to fill this very list.
      const kept = list.filter(({ bytes }) => !isUnused(bytes.buffer))
      list.length = 0
      for (const slot of kept) list.push(slot)
    }
  }
}

/** Bytes that a slot for `length` bytes takes of the limit. */
export function sizeClass(length: number): number {
  let size = SMALLEST
  while (size < length) size *= 2
  return size
}
