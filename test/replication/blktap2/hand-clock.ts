/** A clock that goes only when a test says so. */

import type { Timers } from '../../../core/clock.ts'

export class HandClock {
  nowMs = 0
  #waiting: { readonly atMs: number; readonly run: () => void }[] = []

  readonly timers: Timers = {
    after: (ms, run) => {
      const entry = { atMs: this.nowMs + ms, run }
      this.#waiting.push(entry)
      return () => {
        this.#waiting = this.#waiting.filter((other) => other !== entry)
      }
    },
  }

  advance(ms: number): void {
    const endMs = this.nowMs + ms
    for (;;) {
      const due = this.#waiting.filter(({ atMs }) => atMs <= endMs)
      const [next] = due.sort((a, b) => a.atMs - b.atMs)
      if (next === undefined) break
      this.#waiting = this.#waiting.filter((other) => other !== next)
      this.nowMs = Math.max(this.nowMs, next.atMs)
      next.run()
    }
    this.nowMs = endMs
  }
}
