/**
 * Virtual time: everything that happens later is an event here, and they happen one at a time.
 *
 * Invariants:
 *  - Events run in the order of their times, those of one time in the order in which they were planned.
 *  - When an event begins, all consequences of the one before that need no time have happened (microtasks are drained).
 *  - An event of a life that has ended never runs: a crashed process does nothing more.
 */

import type { Timers } from '../../core/clock.ts'

/** One run of a process, from its start to its crash. */
export interface Life {
  readonly name: string
  alive: boolean
}

interface Event {
  readonly atMs: number
  readonly order: number
  readonly life: Life
  readonly label: string
  run: (() => void) | undefined
}

export class Scheduler {
  nowMs = 0
  /** Events that have run. */
  count = 0
  /** Called after each event, when all is settled. */
  settled: (life: Life) => void = () => undefined
  /** Told of each event, for people. */
  trace: ((line: string) => void) | undefined
  #heap: Event[] = []
  #order = 0
  #failure: { error: unknown } | undefined

  /** @returns cancels the event */
  after(ms: number, life: Life, label: string, run: () => void): () => void {
    const event: Event = { atMs: this.nowMs + ms, order: this.#order, life, label, run }
    this.#order += 1
    this.#push(event)
    return () => {
      event.run = undefined
    }
  }

  timers(life: Life): Timers {
    return { after: (ms, run) => this.after(ms, life, 'timer', run) }
  }

  /** Ends the run at the next event boundary; for what goes wrong where nobody listens. */
  fail(error: unknown): void {
    this.#failure ??= { error }
  }

  note(line: string): void {
    this.trace?.(`${this.nowMs.toFixed(3).padStart(10)}  ${line}`)
  }

  /** Runs until `ms` from now, or until `done` says so. @returns whether `done` did */
  async run(ms: number, done: () => boolean = () => false): Promise<boolean> {
    const endMs = this.nowMs + ms
    await drain()
    if (done()) return true
    for (let event = this.#heap[0]; event !== undefined; event = this.#heap[0]) {
      if (event.atMs > endMs) break
      this.#pop()
      if (event.run === undefined || !event.life.alive) continue
      this.nowMs = event.atMs
      this.count += 1
      if (this.trace !== undefined && event.label !== 'timer')
        this.note(`${event.life.name}: ${event.label}`)
      event.run()
      await drain()
      if (this.#failure !== undefined) throw this.#failure.error
      this.settled(event.life)
      if (done()) return true
    }
    this.nowMs = endMs
    return done()
  }

  #push(event: Event): void {
    const heap = this.#heap
    let at = heap.length
    heap.push(event)
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (isBefore(heap[parent]!, event)) break
      heap[at] = heap[parent]!
      at = parent
    }
    heap[at] = event
  }

  #pop(): void {
    const heap = this.#heap
    const last = heap.pop()
    if (last === undefined || heap.length === 0) return
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child += 1
      if (isBefore(last, heap[child]!)) break
      heap[at] = heap[child]!
      at = child
    }
    heap[at] = last
  }
}

function isBefore(one: Event, other: Event): boolean {
  return one.atMs < other.atMs || (one.atMs === other.atMs && one.order < other.order)
}

/** Resolves when no microtask is left. */
function drain(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve)
  })
}
