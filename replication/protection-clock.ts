/** How long a group was without protection, from the loss, or the start of the process, until it had it again. */

import type { Protection } from './group.ts'

export class ProtectionClock {
  /** Undefined while the group is protected. */
  #lostMs: number | undefined

  constructor(nowMs: number) {
    this.#lostMs = nowMs
  }

  /** @returns milliseconds without protection, where that ends now */
  turn(protection: Protection, nowMs: number): number | undefined {
    if (protection !== 'protected') {
      this.#lostMs ??= nowMs
      return undefined
    }
    const lostMs = this.#lostMs
    this.#lostMs = undefined
    return lostMs === undefined ? undefined : Math.round(nowMs - lostMs)
  }
}
