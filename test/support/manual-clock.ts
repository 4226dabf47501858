/** A clock that goes on when the test says so, and the timers that go by it. */

import type { Timers } from '../../core/clock.ts'

interface Alarm {
  readonly atMs: number
  readonly run: () => void
}

export class ManualClock implements Timers {
  #nowMs = 0
  readonly #alarms = new Set<Alarm>()

  readonly nowMs = (): number => this.#nowMs

  /** Timers that have not gone off. */
  get waiting(): number {
    return this.#alarms.size
  }

  after(ms: number, run: () => void): () => void {
    const alarm = { atMs: this.#nowMs + ms, run }
    this.#alarms.add(alarm)
    return () => this.#alarms.delete(alarm)
  }

  /** Goes on by `ms`; timers go off at their times, and what they lead to happens before the next one. */
  async advance(ms: number): Promise<void> {
    const end = this.#nowMs + ms
    for (;;) {
      const [next] = [...this.#alarms].sort((a, b) => a.atMs - b.atMs)
      if (next === undefined || next.atMs > end) break
      this.#alarms.delete(next)
      this.#nowMs = next.atMs
      next.run()
      await new Promise(setImmediate)
    }
    this.#nowMs = end
    await new Promise(setImmediate)
  }
}
