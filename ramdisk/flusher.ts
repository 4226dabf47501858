/**
 * Writes sealed epochs to the device below, in the background: oldest first, in ascending order, neighbouring
 * sectors in one write, zeroes as zeroes.
 *
 * Invariants:
 *  - An epoch is done when all that it holds was written and flushed after the last write. Only then does the next begin.
 *  - At most about STEP bytes are written and not flushed: what is urgent on the same disk, such as a commit that a
 *    guest waits for, waits behind no more than that. A step gives way to it twice, for LONGEST_WAY at most: where something
 *    is urgent all the time, epochs still reach the image at a good rate.
 *  - Each piece is taken from the epoch and written while its range is locked. Whoever else writes to the device
 *    takes the same lock, and has the epoch forget the range before giving the lock back.
 *  - At most `inFlight` requests are under way, and the event loop gets its turn between them.
 *  - A fault is reported and the same piece tried again later, for as long as it takes. After a failed flush the
 *    whole epoch is written again, since the device may have dropped any of it; and so it is after rewrite().
 *  - What is flushed is never lost by a fault, and no fault ends the flusher. Only close() does.
 */

import { assert, AssertionFailure } from '../core/assert.ts'
import { NO_HOLE, type BlockDevice } from '../core/block-device.ts'
import type { Timers } from '../core/clock.ts'
import { asFault, Fault } from '../core/fault.ts'
import { isPromise } from '../core/maybe-promise.ts'
import type { RangeLock } from '../core/range-lock.ts'
import { KiB, MiB } from '../core/units.ts'
import type { HeldRun } from './epoch.ts'
import type { Layer } from './overlay.ts'
import { SLAB, type PageMemory } from './page-memory.ts'
import { SpilledEpoch } from './spilled-epoch.ts'

/** What an epoch is written to. */
export type FlushTarget = Pick<BlockDevice, 'write' | 'zero' | 'flush'>

export interface FlusherOptions {
  /** Where the staging buffers come from. */
  readonly memory: PageMemory
  readonly timers: Timers
  /** Bytes: the largest write that the target takes. */
  readonly maxWrite?: number
  /** Requests under way at a time; few, so that the guest's requests do not queue behind them. */
  readonly inFlight?: number
  /** Resolves when what is more urgent on the disk is over; undefined while nothing is. */
  readonly urgent?: () => Promise<void> | undefined
  /** Something did not work, and is going to be tried again. */
  readonly onError: (fault: Fault) => void
  /** Called besides, when it was target.flush() that failed. */
  readonly onFlushFailed?: (fault: Fault) => void
}

/** Milliseconds from a first failure to the next try; doubles up to the most. */
const FIRST_RETRY = 100
const LAST_RETRY = 10_000
/** Zeroes in one request: few enough that a guest's write, which waits for it, waits no long time. */
const MOST_ZEROES = 32 * MiB
/** Bytes of a step, after each of which the device is flushed. */
const STEP = 2 * MiB
/** Milliseconds that a step waits for what is more urgent, before its writes and before its flush. */
const LONGEST_WAY = 10
/** Bytes written without waiting, after which the event loop gets a turn. */
const BURST = 256 * KiB
/** Bytes that a small write, and a zeroing, count for in both. */
const LEAST_COST = 16 * KiB

interface Job {
  readonly epoch: Layer
  readonly done: () => void
}

interface Waiter {
  readonly resolve: () => void
  readonly reject: (fault: Fault) => void
}

export class Flusher {
  readonly #target: FlushTarget
  readonly #lock: RangeLock
  readonly #options: FlusherOptions
  readonly #longest: number
  readonly #queue: Job[] = []
  #waiters: Waiter[] = []
  /** Ends each wait that is under way, early. */
  readonly #waits = new Set<() => void>()
  #running: Promise<void> | undefined
  #closed = false
  /** Where the epoch that is being written goes on. */
  #cursor = 0
  /** Bytes that the step under way has left. */
  #stepLeft = 0
  /** What was written of that epoch may not be there any more. */
  #spoiled = false
  #burst = 0
  #progress = 0

  constructor(target: FlushTarget, lock: RangeLock, options: FlusherOptions) {
    this.#target = target
    this.#lock = lock
    this.#options = options
    this.#longest = Math.min(SLAB, options.maxWrite ?? SLAB)
    assert(this.#longest >= 512, 'a device takes a sector in one write')
  }

  /** Grows with every piece that the device has taken, and with every flush. */
  get progress(): number {
    return this.#progress
  }

  /** Queues an epoch. It has to stay as it is, but for clear(), until `done` is called. `done` is never called from here. */
  add(epoch: Layer, done: () => void): void {
    assert(!this.#closed, 'a closed flusher takes no epochs')
    this.#queue.push({ epoch, done })
    this.#running ??= this.#run()
  }

  /** Somebody else's write to the device has failed: in its place there may be anything, also where an epoch was written. */
  rewrite(): void {
    this.#spoiled = true
  }

  /** Resolves when every epoch is done. @throws Fault SHUTDOWN when close() comes first */
  idle(): Promise<void> {
    if (this.#queue.length === 0) return Promise.resolve()
    if (this.#closed) return Promise.reject(shutDown())
    return new Promise((resolve, reject) => {
      this.#waiters.push({ resolve, reject })
    })
  }

  /** Starts nothing more, and resolves when nothing is under way. Epochs that are not done stay undone. */
  async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true
      for (const end of [...this.#waits]) end()
      const waiters = this.#waiters
      this.#waiters = []
      for (const waiter of waiters) waiter.reject(shutDown())
    }
    await this.#running
  }

  async #run(): Promise<void> {
    // add() has returned when the first epoch is begun, and each `done` is called from here.
    await Promise.resolve()
    for (let job = this.#queue[0]; job !== undefined; job = this.#queue[0]) {
      if (!(await this.#put(job.epoch))) return
      this.#queue.shift()
      job.done()
    }
    this.#running = undefined
    const waiters = this.#waiters
    this.#waiters = []
    for (const waiter of waiters) waiter.resolve()
  }

  /** Has the device hold `epoch`, durably. @returns whether it does: false when closed before */
  async #put(epoch: Layer): Promise<boolean> {
    let delay = FIRST_RETRY
    for (;;) {
      if (epoch.isEmpty) return !this.#closed
      this.#cursor = 0
      this.#spoiled = false
      let isFlushed: boolean
      do {
        await this.#writeStep(epoch)
        if (this.#closed) return false
        isFlushed = await this.#flush()
      } while (isFlushed && this.#pieceAt(epoch, this.#cursor) !== undefined)
      if (isFlushed && !this.#isSpoiled()) return true
      if (isFlushed) continue
      if (!(await this.#wait(delay))) return false
      delay = Math.min(delay * 2, LAST_RETRY)
    }
  }

  /** Writes as much more of `epoch` as makes a step. */
  async #writeStep(epoch: Layer): Promise<void> {
    await this.#giveWay()
    this.#stepLeft = STEP
    const writers: Promise<void>[] = []
    for (let count = this.#options.inFlight ?? 2; count > 0; count -= 1)
      writers.push(this.#writePieces(epoch))
    await Promise.all(writers)
    await this.#giveWay()
  }

  /** @returns false after a fault, which it has reported */
  async #flush(): Promise<boolean> {
    try {
      await this.#target.flush()
      this.#progress += 1
      return true
    } catch (error) {
      if (error instanceof AssertionFailure) throw error
      const fault = asFault(error, 'IO', 'flushing an epoch to the image failed')
      this.#options.onError(fault)
      this.#options.onFlushFailed?.(fault)
      return false
    }
  }

  #isSpoiled(): boolean {
    return this.#spoiled
  }

  /** Writes pieces of `epoch` one after the other until there is none that nobody writes, or the step is made. */
  async #writePieces(epoch: Layer): Promise<void> {
    while (!this.#closed && this.#stepLeft > 0) {
      const piece = this.#nextPiece(epoch)
      if (piece === undefined) return
      let delay = FIRST_RETRY
      while (!(await this.#tryPiece(epoch, piece))) {
        if (!(await this.#wait(delay))) return
        delay = Math.min(delay * 2, LAST_RETRY)
      }
    }
  }

  async #giveWay(): Promise<void> {
    const urgent = this.#options.urgent?.()
    if (urgent !== undefined) await this.#wait(LONGEST_WAY, urgent)
  }

  #nextPiece(epoch: Layer): HeldRun | undefined {
    const piece = this.#pieceAt(epoch, this.#cursor)
    if (piece === undefined) return undefined
    this.#cursor = piece.at + piece.length
    this.#stepLeft -= costOf(piece)
    return piece
  }

  #pieceAt(epoch: Layer, at: number): HeldRun | undefined {
    return epoch.next(at, Number.MAX_SAFE_INTEGER, this.#longest, MOST_ZEROES)
  }

  /** Writes what `epoch` holds of a piece, once it has the lock. @returns false after a fault, which it has reported */
  async #tryPiece(epoch: Layer, piece: HeldRun): Promise<boolean> {
    const end = piece.at + piece.length
    const ticket = await this.#lock.acquire(piece.at, piece.length)
    try {
      // A guest's write may have come first, so that the epoch holds less than it did, or nothing, of the range.
      for (let run = epoch.next(piece.at, end); run !== undefined;) {
        const request = run.kind === 'data' ? this.#writeData(epoch, run) : this.#writeZeroes(run)
        await request
        this.#progress += 1
        run = epoch.next(run.at + run.length, end)
      }
      return true
    } catch (error) {
      if (error instanceof AssertionFailure) throw error
      const where = `${piece.length} bytes at ${piece.at}`
      this.#options.onError(asFault(error, 'IO', 'writing an epoch to the image failed', { where }))
      return false
    } finally {
      this.#lock.release(ticket)
    }
  }

  async #writeData(epoch: Layer, run: HeldRun): Promise<void> {
    const staging = this.#options.memory.takeBeyondLimit()
    try {
      const from = staging.bytes.subarray(0, run.length)
      if (epoch instanceof SpilledEpoch) await epoch.copy(from, run.at)
      else epoch.overlay(from, run.at)
      await this.#paced(this.#target.write(from, run.at, 0), run.length)
    } finally {
      this.#options.memory.give(staging)
    }
  }

  async #writeZeroes({ at, length, kind }: HeldRun): Promise<void> {
    try {
      const zeroing = this.#target.zero(at, length, kind === 'kept' ? NO_HOLE : 0)
      await this.#paced(zeroing, LEAST_COST)
    } catch (error) {
      if (!(error instanceof Fault) || error.code !== 'NOT_SUPPORTED') throw error
      await this.#spellOutZeroes(at, length)
    }
  }

  /** For a device that cannot zero. */
  async #spellOutZeroes(at: number, length: number): Promise<void> {
    const staging = this.#options.memory.takeBeyondLimit()
    try {
      staging.bytes.fill(0)
      for (let done = 0; done < length; done += this.#longest) {
        const part = Math.min(this.#longest, length - done)
        await this.#paced(this.#target.write(staging.bytes.subarray(0, part), at + done, 0), part)
      }
    } finally {
      this.#options.memory.give(staging)
    }
  }

  /** Waits for a request. One that finished at once counts towards a burst, which ends with a turn of the event loop. */
  async #paced(request: void | Promise<void>, length: number): Promise<void> {
    if (isPromise(request)) {
      await request
      this.#burst = 0
      return
    }
    this.#burst += Math.max(length, LEAST_COST)
    if (this.#burst < BURST) return
    this.#burst = 0
    await this.#wait(0)
  }

  /** @param early ends it before. @returns whether the flusher is still open then */
  #wait(ms: number, early?: Promise<void>): Promise<boolean> {
    if (this.#closed) return Promise.resolve(false)
    return new Promise((resolve) => {
      const end = () => {
        this.#waits.delete(end)
        cancel()
        resolve(!this.#closed)
      }
      const cancel = this.#options.timers.after(ms, end)
      this.#waits.add(end)
      void early?.then(end)
    })
  }
}

/** Bytes of data that a piece is as much work as. */
function costOf({ kind, length }: HeldRun): number {
  return kind === 'data' ? Math.max(length, LEAST_COST) : LEAST_COST
}

function shutDown(): Fault {
  return new Fault('SHUTDOWN', 'the disk was closed before all of its epochs were in the image')
}
