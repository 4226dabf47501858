/**
 * Shares the buffer pool among the connections of a server, so that no client can keep the others from memory.
 *
 * Invariants:
 *  - A connection that holds memory gets more only while at least as much as it would hold stays free: with N greedy
 *    connections each ends at about 1/(N+1) of the pool, and that much stays free for a newcomer.
 *  - A connection that holds nothing waits in a first-come queue; while anybody waits, nobody else is served, so a
 *    large request is not starved by small ones.
 *  - A connection that is refused because it holds memory is not queued: its own completions call it back.
 */

import { assert } from '../core/assert.ts'
import type { BufferPool, PoolSlot } from '../core/buffer-pool.ts'

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

export class MemoryShare {
  readonly #pool: BufferPool
  #queue: MemoryClaim[] = []
  #listening = false

  constructor(pool: BufferPool) {
    this.#pool = pool
  }

  /** Somebody waits for memory. */
  get contended(): boolean {
    return this.#queue.length > 0
  }

  /** True when no amount of waiting can give this many bytes. */
  exceedsPool(length: number): boolean {
    let size = 4096
    while (size < length) size *= 2
    return size > this.#pool.limit
  }

  /** A slot of at least `length` bytes; undefined when the claim must try again after `retry` or its own release. */
  acquire(claim: MemoryClaim, length: number): PoolSlot | undefined {
    const slot = this.#mayTake(claim, length) ? this.#pool.tryAcquire(length) : undefined
    if (slot === undefined) {
      this.#enqueue(claim)
      return undefined
    }
    claim.held += slot.bytes.length
    if (claim.queued) this.#dequeue(claim)
    return slot
  }

  release(claim: MemoryClaim, slot: PoolSlot): void {
    claim.held -= slot.bytes.length
    assert(claim.held >= 0, 'a connection gives back what it holds')
    this.#pool.release(slot)
  }

  /** The connection is gone: it waits no more. */
  cancel(claim: MemoryClaim): void {
    if (claim.queued) this.#dequeue(claim)
  }

  #mayTake(claim: MemoryClaim, length: number): boolean {
    if (this.#queue.length > 0 && this.#queue[0] !== claim) return false
    const free = this.#pool.limit - this.#pool.bytesInUse
    return claim.held === 0 || claim.held + length <= free - length
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
