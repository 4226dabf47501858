/**
 * What has gone wrong with a group and no operator has acknowledged yet, also where it has healed meanwhile: an operator who looks
 * in the morning sees what happened in the night.
 *
 * Invariants:
 *  - 20 Every loss of protection and every error leaves an alarm, until it is acknowledged.
 *  - The same thing again is the same alarm, counted. Beyond MOST_ALARMS the oldest make room, and that is told.
 */

import type { Alarm, GroupEvent, Protection } from './group.ts'

/** A disk that fails a thousand ways must not fill the memory. */
const MOST_ALARMS = 32

interface Raised {
  readonly text: string
  firstMs: number
  lastMs: number
  count: number
}

export class Alarms {
  readonly #nowMs: () => number
  /** In the order in which they were raised. */
  #raised: Raised[] = []
  #dropped = 0
  #protection: Protection | undefined

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs
  }

  /** Every event of the group. */
  hear(event: GroupEvent): void {
    if (event.event === 'REPLICATION_ERROR') this.#raise(event.data.error)
    if (event.event !== 'REPLICATION_PROTECTION') return
    const { protection, reason } = event.data
    if (this.#protection === 'protected' && protection !== 'protected')
      this.#raise(`protection was lost: ${reason ?? protection}`)
    if (protection === 'inconsistent' && this.#protection !== 'inconsistent')
      this.#raise(`this copy was made a mixture: ${reason ?? 'a copy began'}`)
    this.#protection = protection
  }

  list(): Alarm[] {
    const nowMs = this.#nowMs()
    const alarms = this.#raised.map(({ text, firstMs, lastMs, count }) => ({
      ...{ text, count },
      firstAgeMs: Math.round(nowMs - firstMs),
      lastAgeMs: Math.round(nowMs - lastMs),
    }))
    if (this.#dropped === 0) return alarms
    const text = `${this.#dropped} older alarms were dropped: see the log`
    const [oldest] = alarms
    const age = oldest?.firstAgeMs ?? 0
    return [{ text, count: this.#dropped, firstAgeMs: age, lastAgeMs: age }, ...alarms]
  }

  /** An operator has seen them. */
  acknowledge(): void {
    this.#raised = []
    this.#dropped = 0
  }

  #raise(text: string): void {
    const nowMs = this.#nowMs()
    const known = this.#raised.find((alarm) => alarm.text === text)
    if (known !== undefined) {
      known.count += 1
      known.lastMs = nowMs
      return
    }
    this.#raised.push({ text, firstMs: nowMs, lastMs: nowMs, count: 1 })
    if (this.#raised.length <= MOST_ALARMS) return
    this.#raised.shift()
    this.#dropped += 1
  }
}
