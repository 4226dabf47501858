/**
 * Virtual time: everything that happens later is an event here, and they happen one at a time.
 *
 * Invariants:
 *  - Events run in the order of their times, those of one time in the order in which they were planned.
 *  - When an event begins, all consequences of the one before that need no time have happened (microtasks are drained).
 *  - An event of a life that has ended never runs: a crashed process does nothing more.
 */

import type { Timers } from '../../core/clock.ts'

/** Events that are lined up for one turn of the event loop, at most. */
const LONGEST_LINE = 128

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
  /** A number made of when and in which order events ran: two runs that differ have different ones. */
  digest = 0
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
  run(ms: number, done: () => boolean = () => false): Promise<boolean> {
    const endMs = this.nowMs + ms
    let ran: Life | undefined
    /** @returns whether `done` did, or undefined while there is more to do */
    const advance = (): boolean | undefined => {
      if (this.#failure !== undefined) throw this.#failure.error
      if (ran !== undefined) this.settled(ran)
      if (done()) return true
      ran = this.#runNext(endMs)
      if (ran !== undefined) return undefined
      this.nowMs = endMs
      return false
    }
    return inTurns(advance)
  }

  /** Runs the first event that is due by `endMs`. @returns whose it was; undefined when there is none */
  #runNext(endMs: number): Life | undefined {
    for (let event = this.#heap[0]; event !== undefined; event = this.#heap[0]) {
      if (event.atMs > endMs) break
      this.#pop()
      if (event.run === undefined || !event.life.alive) continue
      this.nowMs = event.atMs
      this.count += 1
      this.digest = Math.imul(this.digest ^ event.order ^ (event.atMs * 4096), 0x01000193) >>> 0
      if (this.trace !== undefined && event.label !== 'timer')
        this.note(`${event.life.name}: ${event.label}`)
      event.run()
      return event.life
    }
    return undefined
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

/**
 * Calls `advance` until it gives an answer, each time with no microtask left. Node drains them after each immediate:
 * many of them in one turn of the loop save a look at the operating system for each.
 */
function inTurns(advance: () => boolean | undefined): Promise<boolean> {
  return new Promise((resolve, reject) => {
    let ended = false
    const step = (): void => {
      if (ended) return
      try {
        const answer = advance()
        if (answer === undefined) return
        ended = true
        resolve(answer)
      } catch (error) {
        ended = true
        reject(error instanceof Error ? error : new Error(String(error)))
      }
    }
    const line = (length: number): void => {
      if (ended) return
      for (let count = 0; count < length; count += 1) setImmediate(step)
      setImmediate(line, Math.min(LONGEST_LINE, 2 * length))
    }
    line(1)
  })
}
