/**
 * Request memory for I/O threads that cannot follow an address (no native calls): buffers in shared memory are used in
 * place under a number that the threads learn once; others are copied through shared memory of their own.
 *
 * Invariants:
 *  - The threads are told of a buffer before a request names it, and told to forget it when nobody can use it again.
 */

import type { MemoryNotice } from './io-thread.ts'

export interface Place {
  readonly id: number
  readonly offset: number
}

/** `into` is where the content goes when the request has succeeded; undefined where it came from there. */
interface Copy {
  readonly id: number
  readonly memory: SharedArrayBuffer
  readonly into: Buffer | undefined
}

export class SharedMemory {
  readonly #announce: (notice: MemoryNotice) => void
  readonly #ids = new WeakMap<SharedArrayBuffer, number>()
  readonly #known = new Map<number, WeakRef<SharedArrayBuffer>>()
  /** Copies under way, by slot. */
  readonly #copies = new Map<number, Copy>()
  readonly #collected = new FinalizationRegistry<number>((id) => this.#forget(id))
  #nextId = 1

  constructor(announce: (notice: MemoryNotice) => void) {
    this.#announce = announce
  }

  /** Where the threads find `bytes`; `filled` says that its content matters. */
  place(slot: number, bytes: Buffer, filled: boolean): Place {
    const memory: ArrayBufferLike = bytes.buffer
    if (memory instanceof SharedArrayBuffer) {
      let id = this.#ids.get(memory)
      if (id === undefined) {
        id = this.#register(memory)
        this.#ids.set(memory, id)
        this.#collected.register(memory, id)
      }
      return { id, offset: bytes.byteOffset }
    }
    const copy = new SharedArrayBuffer(bytes.length)
    if (filled) new Uint8Array(copy).set(bytes)
    const id = this.#register(copy)
    this.#copies.set(slot, { id, memory: copy, into: filled ? undefined : bytes })
    return { id, offset: 0 }
  }

  /** Brings back what was read into a copy, and drops it. */
  release(slot: number, result: number): void {
    const copy = this.#copies.get(slot)
    if (copy === undefined) return
    this.#copies.delete(slot)
    if (result > 0) copy.into?.set(new Uint8Array(copy.memory))
    this.#forget(copy.id)
  }

  /** What a thread that starts now must be told. */
  *known(): Iterable<MemoryNotice> {
    for (const [id, reference] of this.#known) {
      const memory = reference.deref()
      if (memory !== undefined) yield { id, memory }
    }
  }

  #register(memory: SharedArrayBuffer): number {
    const id = this.#nextId
    this.#nextId += 1
    this.#known.set(id, new WeakRef(memory))
    this.#announce({ id, memory })
    return id
  }

  #forget(id: number): void {
    this.#known.delete(id)
    this.#announce({ id, memory: undefined })
  }
}
