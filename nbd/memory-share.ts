/**
 * Shares the buffer pool among the connections of a server, so that no client can keep the others from memory.
 *
 * Invariants:
 *  - Every connection has an allotment that nobody else can take: small requests never wait for another client.
 *  - Beyond it, a connection that holds memory gets more only while at least as much as it would hold stays free: a
 *    greedy one leaves room for the next.
 *  - A connection that holds nothing waits in a first-come queue; while anybody waits, nobody else is served beyond its
 *    allotment, so a large request is not starved by smaller ones.
 *  - A connection that is refused because it holds memory is not queued: its own completions call it back.
 */

import { assert } from '../core/assert.ts'
import { sizeClass, type BufferPool, type PoolSlot } from '../core/buffer-pool.ts'
import { KiB } from '../core/units.ts'

/** One connection's part of the pool. */
export class MemoryClaim {
  /** Bytes of pool memory that the connection holds. */
  held = 0
  queued = false
  readonly retry: () => void

  /** @param retry called when a queued claim can try again */
  constructor(retry: () => void) {
    this.retry = retry
  }
}

/** Bytes of a connection's own, where the pool is large enough: a few requests of a usual size. */
const ALLOTMENT = 64 * KiB
/** The part of the pool that allotments take at most. */
const ALLOTTED = 1 / 4

export class MemoryShare {
  readonly #pool: BufferPool
  readonly #allotment: number
  /** Bytes that are free for all, beyond the allotments; and how many of them are taken. */
  readonly #common: number
  #taken = 0
  #queue: MemoryClaim[] = []
  #listening = false

  /** @param connections the most that there are at a time */
  constructor(pool: BufferPool, connections: number) {
    this.#pool = pool
    const share = Math.min(ALLOTMENT, Math.floor((pool.limit * ALLOTTED) / connections))
    // Of what no request fits into, nobody would have anything.
    this.#allotment = share < sizeClass(1) ? 0 : share
    this.#common = pool.limit - this.#allotment * connections
  }

  /** Somebody waits for memory. */
  get contended(): boolean {
    return this.#queue.length > 0
  }

  /** True when no amount of waiting can give this many bytes. */
  exceedsPool(length: number): boolean {
    return sizeClass(length) > this.#common
  }

  /** A slot of at least `length` bytes; undefined when the claim must try again after `retry` or its own release. */
  acquire(claim: MemoryClaim, length: number): PoolSlot | undefined {
    const size = sizeClass(length)
    const slot = this.#mayTake(claim, size) ? this.#pool.tryAcquire(length) : undefined
    if (slot === undefined) {
      this.#enqueue(claim)
      return undefined
    }
    assert(slot.bytes.length === size, 'a slot is of the size that was reckoned with')
    this.#taken += this.#beyond(claim.held + size) - this.#beyond(claim.held)
    claim.held += size
    if (claim.queued) this.#dequeue(claim)
    return slot
  }

  release(claim: MemoryClaim, slot: PoolSlot): void {
    const held = claim.held - slot.bytes.length
    this.#taken += this.#beyond(held) - this.#beyond(claim.held)
    claim.held = held
    assert(claim.held >= 0, 'a connection gives back what it holds')
    this.#pool.release(slot)
  }

  /** The connection is gone: it waits no more. */
  cancel(claim: MemoryClaim): void {
    if (claim.queued) this.#dequeue(claim)
  }

  #mayTake(claim: MemoryClaim, size: number): boolean {
    if (claim.held + size <= this.#allotment) return true
    if (this.#queue.length > 0 && this.#queue[0] !== claim) return false
    const free = this.#common - this.#taken
    if (claim.held === 0) return size <= free
    return claim.held + size <= free - size
  }

  /** How much of what a connection holds is not its own allotment. */
  #beyond(held: number): number {
    return Math.max(0, held - this.#allotment)
  }

  #enqueue(claim: MemoryClaim): void {
    if (claim.held > 0 || claim.queued) return
    claim.queued = true
    this.#queue.push(claim)
    this.#listen()
  }

  #dequeue(claim: MemoryClaim): void {
    claim.queued = false
    this.#queue.splice(this.#queue.indexOf(claim), 1)
    // The next in line may fit into what is free already.
    if (this.#queue.length > 0) queueMicrotask(this.#wakeHead)
  }

  #listen(): void {
    if (this.#listening) return
    this.#listening = true
    this.#pool.whenReleased(this.#onRelease)
  }

  readonly #onRelease = (): void => {
    this.#listening = false
    if (this.#queue.length === 0) return
    this.#listen()
    // Not inside the releaser's stack: it may be in the middle of finishing a request.
    queueMicrotask(this.#wakeHead)
  }

  readonly #wakeHead = (): void => {
    this.#queue[0]?.retry()
  }
}
