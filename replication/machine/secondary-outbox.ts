/** The effects of one step of a secondary's machine, in the order in which they have to be performed. */

import type { FaultCode } from '../../core/fault.ts'
import type { GroupEvent } from '../group.ts'
import { frame, type Frame } from './frame.ts'
import { encodeRefusal, type Refusal } from './handshake.ts'
import type { SecondaryEffect } from './secondary-io.ts'

export class SecondaryOutbox {
  #effects: SecondaryEffect[] = []

  add(effect: SecondaryEffect): void {
    this.#effects.push(effect)
  }

  send(link: number, outgoing: Frame): void {
    this.add({ type: 'send', link, frame: outgoing })
  }

  /** Ends a link, and says why. */
  refuse(link: number, refusal: Refusal): void {
    this.send(link, frame('refuse', { payload: encodeRefusal(refusal) }))
    this.add({ type: 'close-link', link, reason: refusal.reason })
  }

  failCheckpoint(request: number, code: FaultCode, reason: string): void {
    this.add({ type: 'checkpoint-failed', request, code, reason })
  }

  failCheckpoints(requests: readonly number[], code: FaultCode, reason: string): void {
    for (const request of requests) this.failCheckpoint(request, code, reason)
  }

  event(event: GroupEvent): void {
    this.add({ type: 'event', event })
  }

  /** @returns what was added since the last call */
  take(): readonly SecondaryEffect[] {
    const effects = this.#effects
    this.#effects = []
    return effects
  }
}
