/** The effects of one step of a primary's machine, in the order in which they have to be performed. */

import type { GroupEvent } from '../group.ts'
import type { Frame } from './frame.ts'
import type { PrimaryEffect } from './primary-io.ts'

export class PrimaryOutbox {
  #effects: PrimaryEffect[] = []

  add(effect: PrimaryEffect): void {
    this.#effects.push(effect)
  }

  send(frame: Frame): void {
    this.add({ type: 'send', frame })
  }

  event(event: GroupEvent): void {
    this.add({ type: 'event', event })
  }

  /** @returns what was added since the last call */
  take(): readonly PrimaryEffect[] {
    const effects = this.#effects
    this.#effects = []
    return effects
  }
}
