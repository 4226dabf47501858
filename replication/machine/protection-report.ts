/** Tells of a group's protection whenever it, or the reason for it, has changed: once for each change. */

import type { GroupEvent, Protection } from '../group.ts'

interface State {
  readonly protection: Protection
  readonly reason: string | null
}

export class ProtectionReport {
  readonly #group: string
  #told: State

  constructor(group: string, { protection, reason }: State) {
    this.#group = group
    this.#told = { protection, reason }
  }

  /** @returns the event to send, if anything has changed since the last one */
  news({ protection, reason }: State): GroupEvent | undefined {
    if (protection === this.#told.protection && reason === this.#told.reason) return undefined
    this.#told = { protection, reason }
    return { event: 'REPLICATION_PROTECTION', data: { group: this.#group, protection, reason } }
  }
}
