/**
 * Locks on byte ranges: holders of overlapping ranges take turns in the order they asked; others never wait.
 *
 * Invariants:
 *  - Two held ranges never overlap.
 *  - A waiter is granted only when it overlaps no held range and no earlier waiter: nobody is overtaken or starved.
 */

import { assert } from './assert.ts'
import type { MaybePromise } from './maybe-promise.ts'

/** A granted or waiting range; give it back with release(). */
export class RangeTicket {
  at: number
  end: number
  held = false
  readonly grant: ((ticket: RangeTicket) => void) | undefined

  constructor(at: number, end: number, grant?: (ticket: RangeTicket) => void) {
    this.at = at
    this.end = end
    this.grant = grant
  }
}

export class RangeLock {
  #held: RangeTicket[] = []
  #waiting: RangeTicket[] = []

  /** Ranges held or waited for. */
  get size(): number {
    return this.#held.length + this.#waiting.length
  }

  /** Takes [at, at + length), at once where it is free. */
  acquire(at: number, length: number): MaybePromise<RangeTicket> {
    const end = at + length
    if (!overlapsAny(this.#held, at, end) && !overlapsAny(this.#waiting, at, end)) {
      const ticket = new RangeTicket(at, end)
      ticket.held = true
      this.#held.push(ticket)
      return ticket
    }
    return new Promise((resolve) => {
      this.#waiting.push(new RangeTicket(at, end, resolve))
    })
  }

  release(ticket: RangeTicket): void {
    assert(ticket.held, 'a range is released once, by its holder')
    ticket.held = false
    const last = this.#held.pop()
    assert(last !== undefined, 'a held range is listed')
    if (last !== ticket) this.#held[this.#held.indexOf(ticket)] = last
    if (this.#waiting.length > 0) this.#grantWaiting()
  }

  #grantWaiting(): void {
    const still: RangeTicket[] = []
    for (const ticket of this.#waiting) {
      if (
        overlapsAny(this.#held, ticket.at, ticket.end) ||
        overlapsAny(still, ticket.at, ticket.end)
      ) {
        still.push(ticket)
        continue
      }
      ticket.held = true
      this.#held.push(ticket)
      ticket.grant?.(ticket)
    }
    this.#waiting = still
  }
}

function overlapsAny(tickets: readonly RangeTicket[], at: number, end: number): boolean {
  for (const ticket of tickets) if (ticket.at < end && at < ticket.end) return true
  return false
}
