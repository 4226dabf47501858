/**
 * The memory that the main thread and the I/O threads of one disk share: a request table, a queue of submitted
 * requests and a queue of completed ones.
 *
 * Invariants:
 *  - A slot belongs to the main thread until it is submitted, to one I/O thread from take() to complete(), and to
 *    the main thread again once nextCompleted() has named it.
 *  - Both queues hold at most SLOTS entries, and no more slots than that exist: neither can overflow.
 *  - A thread that sleeps has counted itself idle before it looked at the queue for the last time, and the main
 *    thread publishes a request before it looks at that count: no request is left behind sleeping threads.
 *  - A thread that has published completions asks mustRing() before it sleeps or does what may take long; after that,
 *    the doorbell was rung, a ring that the main thread has not answered is still on its way, or the main thread has
 *    silenced the doorbell, and looks by itself until it answers.
 */

import { assert } from '../../core/assert.ts'
import { KiB } from '../../core/units.ts'

/** Requests with the threads at a time; more wait on the main thread. */
export const SLOTS = 256

/** A longer transfer, in bytes, takes so long that waking somebody for it makes no difference. */
export const BRIEF = 32 * KiB

/** What a thread can be asked for. */
export const READ = 0
export const WRITE = 1
export const SYNC = 2
export const ZERO = 3
export const TRIM = 4
export const EXTENTS = 5
export const RESIZE = 6
export const PROBE_PUNCH = 7
export const READ_AHEAD = 8
export type Operation = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8

/** Results beyond the errno numbers. */
export const ENDED_EARLY = -1_000_000 // a read met the end of the file within the disk
export const THREAD_LOST = -1_000_001 // no thread is there to serve the request

// Words of the header.
const SUBMITTED = 0 // requests ever published
const TAKEN = 1 // requests ever taken by a thread
const IDLE = 2 // threads asleep, or about to be
const WAKE = 3 // changes with every wake-up; threads sleep on it
const COMPLETED = 4 // completions ever begun
const RUNG = 5 // 1 while a ring of the doorbell is on its way, or none is wanted
const STOP = 6
const MAIL = 7 // messages ever posted to the threads' ports
const HEADER = 8

// Fields of a slot.
const FIELDS = 8
const OPERATION = 0
const MEMORY = 1 // address, or number of a registered shared buffer
const OFFSET = 2 // in that shared buffer
const AT = 3
const LENGTH = 4
const FLAGS = 5
const RESULT = 6
const STOPPED_AT = 7

export class Ring {
  readonly memory: SharedArrayBuffer
  readonly #header: Int32Array
  readonly #submissions: Int32Array
  readonly #completions: Int32Array
  readonly #fields: Float64Array
  /** Completions that the main thread has seen. */
  #seen = 0

  constructor(memory = new SharedArrayBuffer(4 * (HEADER + 2 * SLOTS) + 8 * SLOTS * FIELDS)) {
    this.memory = memory
    this.#header = new Int32Array(memory, 0, HEADER)
    this.#submissions = new Int32Array(memory, 4 * HEADER, SLOTS)
    this.#completions = new Int32Array(memory, 4 * (HEADER + SLOTS), SLOTS)
    this.#fields = new Float64Array(memory, 4 * (HEADER + 2 * SLOTS), SLOTS * FIELDS)
  }

  // The main thread's side.

  fill(slot: number, operation: Operation, at: number, length: number, flags: number): void {
    const base = slot * FIELDS
    this.#fields[base + OPERATION] = operation
    this.#fields[base + AT] = at
    this.#fields[base + LENGTH] = length
    this.#fields[base + FLAGS] = flags
  }

  point(slot: number, memory: number, offset: number): void {
    this.#fields[slot * FIELDS + MEMORY] = memory
    this.#fields[slot * FIELDS + OFFSET] = offset
  }

  /** Publishes a filled slot. A thread that is awake finds it; wake() is for those asleep. */
  submit(slot: number): void {
    const tail = Atomics.load(this.#header, SUBMITTED)
    Atomics.store(this.#submissions, tail & (SLOTS - 1), slot)
    Atomics.store(this.#header, SUBMITTED, (tail + 1) | 0)
  }

  get idle(): number {
    return Atomics.load(this.#header, IDLE)
  }

  /** Wakes up to `count` sleeping threads. */
  wake(count: number): void {
    Atomics.add(this.#header, WAKE, 1)
    Atomics.notify(this.#header, WAKE, count)
  }

  /** Says that a message was posted to every thread's port, before the request that needs it is submitted. */
  announceMail(): void {
    Atomics.add(this.#header, MAIL, 1)
  }

  /** Threads end when the queue is empty. */
  stop(): void {
    Atomics.store(this.#header, STOP, 1)
    this.wake(Number.POSITIVE_INFINITY)
  }

  /** To be called before looking for completions: later ones ring again. */
  answerDoorbell(): void {
    Atomics.store(this.#header, RUNG, 0)
  }

  /** Has no thread ring until the doorbell is answered: the caller looks for completions by itself until then. */
  silenceDoorbell(): void {
    Atomics.store(this.#header, RUNG, 1)
  }

  get hasCompleted(): boolean {
    return Atomics.load(this.#completions, this.#seen & (SLOTS - 1)) !== 0
  }

  /** The next completed slot, or -1. */
  nextCompleted(): number {
    const index = this.#seen & (SLOTS - 1)
    const entry = Atomics.load(this.#completions, index)
    if (entry === 0) return -1
    Atomics.store(this.#completions, index, 0)
    this.#seen = (this.#seen + 1) | 0
    return entry - 1
  }

  /** Bytes or another count where it is >= 0, else the negated errno. */
  result(slot: number): number {
    return this.#field(slot, RESULT)
  }

  /** Where the request stopped: the offset of a failure. */
  stoppedAt(slot: number): number {
    return this.#field(slot, STOPPED_AT)
  }

  // A thread's side.

  get hasSubmitted(): boolean {
    return Atomics.load(this.#header, TAKEN) !== Atomics.load(this.#header, SUBMITTED)
  }

  /** The next request's slot, or -1. */
  take(): number {
    for (;;) {
      const head = Atomics.load(this.#header, TAKEN)
      if (head === Atomics.load(this.#header, SUBMITTED)) return -1
      const slot = Atomics.load(this.#submissions, head & (SLOTS - 1))
      const next = (head + 1) | 0
      if (Atomics.compareExchange(this.#header, TAKEN, head, next) === head) return slot
    }
  }

  /** Waits until there may be something to take; false when the thread should end. */
  sleep(): boolean {
    const wakeups = Atomics.load(this.#header, WAKE)
    Atomics.add(this.#header, IDLE, 1)
    const empty = !this.hasSubmitted
    const stopping = Atomics.load(this.#header, STOP) === 1
    if (empty && !stopping) Atomics.wait(this.#header, WAKE, wakeups)
    Atomics.sub(this.#header, IDLE, 1)
    return !(empty && stopping)
  }

  get mail(): number {
    return Atomics.load(this.#header, MAIL)
  }

  operation(slot: number): number {
    return this.#field(slot, OPERATION)
  }

  memoryOf(slot: number): number {
    return this.#field(slot, MEMORY)
  }

  offset(slot: number): number {
    return this.#field(slot, OFFSET)
  }

  at(slot: number): number {
    return this.#field(slot, AT)
  }

  length(slot: number): number {
    return this.#field(slot, LENGTH)
  }

  flags(slot: number): number {
    return this.#field(slot, FLAGS)
  }

  /** Publishes the outcome. */
  complete(slot: number, result: number, stoppedAt: number): void {
    this.#fields[slot * FIELDS + RESULT] = result
    this.#fields[slot * FIELDS + STOPPED_AT] = stoppedAt
    const position = Atomics.add(this.#header, COMPLETED, 1)
    Atomics.store(this.#completions, position & (SLOTS - 1), slot + 1)
  }

  /** Whether the caller, having completed something, has to ring the doorbell: no ring is on its way. */
  mustRing(): boolean {
    return Atomics.exchange(this.#header, RUNG, 1) === 0
  }

  #field(slot: number, field: number): number {
    const value = this.#fields[slot * FIELDS + field]
    assert(value !== undefined, 'a slot number is within the table')
    return value
  }
}
