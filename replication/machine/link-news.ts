/**
 * What a secondary says of its link, and when.
 *
 * Invariant 8: a loss is told after every commit that was begun has ended. Until then it is open which checkpoint the guest here
 * stands on: a commit takes away what the guest has written by itself, so who heard of the loss and went on would lose
 * acknowledged writes. After that nothing is committed before a primary is followed again.
 */

import type { GroupEvent } from '../group.ts'

type LinkEvent = Extract<GroupEvent, { event: 'REPLICATION_LINK' }>

export class LinkNews {
  readonly #group: string
  /** A loss that was not told yet. */
  #loss: LinkEvent | undefined

  constructor(group: string) {
    this.#group = group
  }

  /** A primary is followed. @returns the news, with an older loss first: whoever counts them misses none */
  up(peer: string): readonly LinkEvent[] {
    const loss = this.takeLoss()
    const up = this.#event(true, peer, null)
    return loss === undefined ? [up] : [loss, up]
  }

  lost(peer: string | null, reason: string): void {
    this.#loss = this.#event(false, peer, reason)
  }

  /** To be told now. */
  takeLoss(): LinkEvent | undefined {
    const loss = this.#loss
    this.#loss = undefined
    return loss
  }

  #event(up: boolean, peer: string | null, reason: string | null): LinkEvent {
    return { event: 'REPLICATION_LINK', data: { group: this.#group, up, peer, reason } }
  }
}
