/**
 * The way of an event from its group or export to the doors: stamped once, so that every door shows the same time,
 * and handed on at once, so that an event comes before the reply of the command that caused it.
 *
 * Invariants:
 *  - publish() never throws an outside fault back to whom it comes from, and never waits.
 *  - Nothing is stored here. A door that hands events to clients bounds each client's backlog itself.
 */

import type { ExportEvent } from '../drivers/movable/export-event.ts'
import type { GroupEvent } from '../replication/group.ts'

export type StampedEvent = (GroupEvent | ExportEvent) & {
  readonly timestamp: { readonly seconds: number; readonly microseconds: number }
}

export class EventBus {
  readonly #subscribers = new Set<(event: StampedEvent) => void>()
  readonly #now: () => number

  /** @param now milliseconds since 1970, with a fraction */
  constructor(now: () => number = () => performance.timeOrigin + performance.now()) {
    this.#now = now
  }

  readonly publish = (event: GroupEvent | ExportEvent): void => {
    const stamped: StampedEvent = { ...event, timestamp: timestampOf(this.#now()) }
    for (const subscriber of [...this.#subscribers]) subscriber(stamped)
  }

  /** @returns ends the subscription; may be called again */
  subscribe(subscriber: (event: StampedEvent) => void): () => void {
    this.#subscribers.add(subscriber)
    return () => this.#subscribers.delete(subscriber)
  }
}

function timestampOf(milliseconds: number): StampedEvent['timestamp'] {
  const microseconds = Math.floor(milliseconds * 1000)
  return { seconds: Math.floor(microseconds / 1e6), microseconds: microseconds % 1e6 }
}
