/**
 * The I/O threads of one disk, seen from the main thread: requests go in, outcomes come out, in batches.
 *
 * Invariants:
 *  - Every accepted request settles exactly once, and its memory is kept alive until then.
 *  - Threads are woken at most once per turn of the event loop, and only as many as can help: one for requests that
 *    the page cache absorbs, one more for each that may wait for the disk, so that the first never queue behind those.
 *  - While the doorbell is silent nothing is under way, or this side looks for completions in the same turn.
 *  - The process stays alive while requests are with the threads, and not because of idle threads.
 */

import { once } from 'node:events'
import { Worker } from 'node:worker_threads'

import { assert } from '../../core/assert.ts'
import type { ImageDescription } from './image-io.ts'
import type { MemoryNotice, ThreadStart } from './io-thread.ts'
import { LookOut } from './look-out.ts'
import type { Native } from './native.ts'
import { BRIEF, Ring, SLOTS, THREAD_LOST, WRITE, type Operation } from './ring.ts'
import { SharedMemory } from './shared-memory.ts'

/** A request for the threads. `settle` is called on the main thread with the result as ring.ts defines it. */
export interface IoRequest {
  readonly operation: Operation
  readonly at: number
  readonly length: number
  readonly flags: number
  readonly bytes: Buffer | undefined
  /** Whether it may wait for the disk rather than the page cache. */
  readonly slow: boolean
  settle(result: number, stoppedAt: number): void
}

export class IoThreads {
  readonly #ring = new Ring()
  readonly #image: ImageDescription
  readonly #native: Native | undefined
  readonly #limit: number
  readonly #onLost: (error: unknown) => void
  readonly #workers: Worker[] = []
  readonly #free: number[] = Array.from({ length: SLOTS }, (_, slot) => SLOTS - 1 - slot)
  readonly #inFlight: (IoRequest | undefined)[] = new Array<undefined>(SLOTS).fill(undefined)
  readonly #backlog: IoRequest[] = []
  readonly #shared: SharedMemory
  #slow = 0
  #wakeQueued = false
  readonly #lookOut = new LookOut()
  #silenced = false
  /** Bytes of the request that was submitted last. */
  #lastLength = 0
  #lost = false
  #closing = false

  /**
   * @param limit most threads
   * @param onLost told once when a thread could not start or ended by itself; every request fails from then on
   */
  constructor(
    image: ImageDescription,
    native: Native | undefined,
    limit: number,
    onLost: (error: unknown) => void,
  ) {
    this.#image = image
    this.#native = native
    this.#limit = limit
    this.#onLost = onLost
    this.#shared = new SharedMemory((notice) => this.#announce(notice))
  }

  submit(request: IoRequest): void {
    assert(!this.#closing, 'no request follows the close')
    if (this.#lost) {
      request.settle(THREAD_LOST, request.at)
      return
    }
    const slot = this.#free.pop()
    if (slot === undefined) this.#backlog.push(request)
    else this.#start(slot, request)
  }

  /** Ends the threads. Every request must have settled. */
  async close(): Promise<void> {
    assert(this.#free.length === SLOTS || this.#lost, 'requests settle before the close')
    this.#closing = true
    const ends = this.#workers.map((worker) => {
      worker.ref()
      return once(worker, 'exit')
    })
    this.#ring.stop()
    if (!this.#lost) await Promise.all(ends)
  }

  #start(slot: number, request: IoRequest): void {
    if (this.#free.length === SLOTS - 1) this.#workers[0]?.ref()
    this.#inFlight[slot] = request
    this.#lastLength = request.length
    if (request.slow) this.#slow += 1
    this.#ring.fill(slot, request.operation, request.at, request.length, request.flags)
    if (request.bytes !== undefined) this.#pointAt(slot, request.bytes, request.operation === WRITE)
    this.#ring.submit(slot)
    if (this.#wakeQueued) return
    this.#wakeQueued = true
    process.nextTick(this.#wake)
  }

  #pointAt(slot: number, bytes: Buffer, filled: boolean): void {
    if (this.#native !== undefined) {
      this.#ring.point(slot, this.#native.address(bytes), 0)
      return
    }
    const place = this.#shared.place(slot, bytes, filled)
    this.#ring.point(slot, place.id, place.offset)
  }

  readonly #wake = (): void => {
    this.#wakeQueued = false
    const inFlight = SLOTS - this.#free.length
    const wanted = Math.min(this.#limit, inFlight, this.#slow + 1)
    const idle = this.#ring.idle
    const active = this.#workers.length - idle
    const missing = wanted - active
    if (missing > 0 && idle > 0) this.#ring.wake(missing)
    if (missing > idle) this.#grow()
    else if (inFlight === 1 && this.#isBrief && this.#lookOut.tries()) this.#awaitBrief()
    if (this.#silenced && this.#free.length < SLOTS) this.#collect()
  }

  /** Whether the only request under way is done in no time, if nothing is in its way. */
  get #isBrief(): boolean {
    return this.#slow === 0 && this.#lastLength <= BRIEF
  }

  /** Waits a moment for the only request, without sleep and without the doorbell's way through the event loop. */
  #awaitBrief(): void {
    if (!this.#silenced) this.#ring.silenceDoorbell()
    this.#silenced = true
    // Where it was seen the doorbell stays silent: nothing is under way that could ring it.
    if (this.#lookOut.sees(this.#hasCompleted)) this.#takeCompleted()
  }

  readonly #hasCompleted = (): boolean => this.#ring.hasCompleted

  #grow(): void {
    const start: ThreadStart = {
      memory: this.#ring.memory,
      image: this.#image,
      native: this.#native !== undefined,
    }
    // From source (tests) the thread's program is TypeScript, and the loader that runs us is inherited.
    const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
    const worker = new Worker(new URL(`./io-thread.${extension}`, import.meta.url), {
      workerData: start,
      name: 'colotap-io',
      trackUnmanagedFds: false,
    })
    worker.on('message', this.#collect)
    worker.once('error', (error) => this.#fail(error))
    worker.once('exit', () => {
      if (!this.#closing) this.#fail(new Error('the I/O thread ended'))
    })
    if (this.#workers.length > 0) worker.unref()
    for (const notice of this.#shared.known()) worker.postMessage(notice)
    this.#workers.push(worker)
  }

  /** The doorbell's handler. */
  readonly #collect = (): void => {
    this.#ring.answerDoorbell()
    this.#silenced = false
    this.#takeCompleted()
  }

  #takeCompleted(): void {
    for (let slot = this.#ring.nextCompleted(); slot >= 0; slot = this.#ring.nextCompleted()) {
      const request = this.#inFlight[slot]
      assert(request !== undefined, 'a completed request was in flight')
      const result = this.#ring.result(slot)
      const stoppedAt = this.#ring.stoppedAt(slot)
      this.#inFlight[slot] = undefined
      if (request.slow) this.#slow -= 1
      if (this.#native === undefined) this.#shared.release(slot, result)
      this.#free.push(slot)
      request.settle(result, stoppedAt)
    }
    while (this.#backlog.length > 0 && this.#free.length > 0) {
      const request = this.#backlog.shift()
      if (request !== undefined) this.submit(request)
    }
    if (this.#free.length === SLOTS) this.#workers[0]?.unref()
  }

  #announce(notice: MemoryNotice): void {
    for (const worker of this.#workers) worker.postMessage(notice)
    this.#ring.announceMail()
  }

  #fail(error: unknown): void {
    if (this.#lost) return
    this.#lost = true
    this.#onLost(error)
    const requests = [...this.#inFlight, ...this.#backlog]
    this.#inFlight.fill(undefined)
    this.#backlog.length = 0
    for (const request of requests) request?.settle(THREAD_LOST, request.at)
    this.#ring.stop()
  }
}
