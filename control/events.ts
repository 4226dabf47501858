/**
 * The way of a replication event from its group to the doors: stamped once, so that every door shows the same time,
 * and handed on at once, so that an event comes before the reply of the command that caused it.
 *
 * Invariants:
 *  - publish() never throws an outside fault back into the group, and never waits.
 *  - Nothing is stored here. A door that hands events to clients bounds each client's backlog itself.
 */

import type { GroupEvent, GroupEventSink } from '../replication/group.ts'

export type StampedEvent = GroupEvent & {
  readonly timestamp: { readonly seconds: number; readonly microseconds: number }
}

export class EventBus {
  readonly #subscribers = new Set<(event: StampedEvent) => void>()
  readonly #now: () => number

  /** @param now milliseconds since 1970, with a fraction */
  constructor(now: () => number = () => performance.timeOrigin + performance.now()) {
    this.#now = now
  }

  readonly publish: GroupEventSink = (event) => {
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
