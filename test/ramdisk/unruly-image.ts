/**
 * An image that does everything a real one may do to its users: requests finish in any order, at once or later,
 * fail after having been performed for a part of their sectors, and a failed flush loses what it should have saved
 * although reads still show it. All of it follows from a seed.
 */

import { assert } from '../../core/assert.ts'
import type { BlockDevice, Capabilities, Extent, Geometry } from '../../core/block-device.ts'
import type { Timers } from '../../core/clock.ts'
import { Fault } from '../../core/fault.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { SECTOR } from '../../core/units.ts'

/** Numbers from 0 to below `bound`, the same for the same seed. */
function chance(seed: number): (bound: number) => number {
  let state = seed >>> 0
  return (bound) => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) % bound
  }
}

interface Request {
  readonly perform: (sectors: (sector: number) => boolean) => void
  readonly resolve: () => void
  readonly reject: (fault: Fault) => void
  readonly mayFail: boolean
}

export class UnrulyImage implements BlockDevice {
  readonly geometry: Geometry
  readonly can: Capabilities = {
    flush: true,
    fua: true,
    trim: true,
    zero: true,
    fastZero: false,
    status: false,
    resize: false,
    cache: false,
  }
  /** What reads see. */
  readonly content: Buffer
  /** What would be left after a crash. */
  readonly durable: Buffer
  readonly #unsaved = new Set<number>()
  readonly #requests: Request[] = []
  readonly #next: (bound: number) => number
  /** Off: every request works, though not at once. */
  unruly = true
  canZero = true
  mostInFlight = 0
  /** Every write and zero, in the order in which they were issued. */
  readonly log: { readonly at: number; readonly length: number; readonly kind: string }[] = []

  constructor(size: number, seed: number) {
    this.geometry = {
      size,
      block: { min: SECTOR, preferred: 4096, max: 32 * 2 ** 20 },
      readOnly: false,
      rotational: false,
    }
    this.content = Buffer.alloc(size)
    this.durable = Buffer.alloc(size)
    this.#next = chance(seed)
  }

  get inFlight(): number {
    return this.#requests.length
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    // The content of the moment at which it is performed, sector by sector: a read is not atomic.
    return this.#submit(at, into.length, true, (sector) => {
      const start = Math.max(sector * SECTOR, at)
      this.content.copy(into, start - at, start, Math.min((sector + 1) * SECTOR, at + into.length))
    })
  }

  write(from: Buffer, at: number): MaybePromise<void> {
    this.log.push({ at, length: from.length, kind: 'write' })
    return this.#submit(at, from.length, true, (sector) => {
      const start = Math.max(sector * SECTOR, at)
      from.copy(this.content, start, start - at, Math.min((sector + 1) * SECTOR - at, from.length))
      this.#unsaved.add(sector)
    })
  }

  zero(at: number, length: number, flags: number): MaybePromise<void> {
    if (!this.canZero) throw new Fault('NOT_SUPPORTED', 'this image cannot zero')
    this.log.push({ at, length, kind: flags === 0 ? 'punch' : 'zero' })
    return this.#submit(at, length, true, (sector) => {
      this.content.fill(0, sector * SECTOR, Math.min((sector + 1) * SECTOR, at + length))
      this.#unsaved.add(sector)
    })
  }

  trim(at: number, length: number): MaybePromise<void> {
    return this.zero(at, length, 0)
  }

  flush(): MaybePromise<void> {
    this.log.push({ at: 0, length: 0, kind: 'flush' })
    const saving = [...this.#unsaved]
    return this.#request((chosen) => {
      const whole = saving.every(chosen)
      for (const sector of saving) {
        if (whole) {
          const range = [sector * SECTOR, (sector + 1) * SECTOR] as const
          this.content.copy(this.durable, range[0], ...range)
        }
        this.#unsaved.delete(sector)
      }
    })
  }

  status(): Extent[] {
    throw new Fault('NOT_SUPPORTED', 'not needed here')
  }

  resize(): Promise<void> {
    return Promise.reject(new Fault('NOT_SUPPORTED', 'not needed here'))
  }

  close(): Promise<void> {
    return Promise.resolve()
  }

  /** Ends one of the requests in flight, well or badly. */
  finishOne(which: number): void {
    const [request] = this.#requests.splice(which % Math.max(1, this.#requests.length), 1)
    if (request !== undefined) this.#end(request)
  }

  #submit(
    at: number,
    length: number,
    mayFail: boolean,
    perform: (sector: number) => void,
  ): MaybePromise<void> {
    assert(at % SECTOR === 0 && at + length <= this.geometry.size, 'requests are of sectors')
    return this.#request((chosen) => {
      for (let sector = at / SECTOR; sector * SECTOR < at + length; sector += 1)
        if (chosen(sector)) perform(sector)
    }, mayFail)
  }

  #request(perform: Request['perform'], mayFail = true): MaybePromise<void> {
    if (this.unruly && this.#next(4) === 0) {
      let failed: Fault | undefined
      this.#end({ perform, mayFail, resolve: () => undefined, reject: (fault) => (failed = fault) })
      if (failed !== undefined) throw failed
      return undefined
    }
    return new Promise((resolve, reject) => {
      this.#requests.push({ perform, resolve, reject, mayFail })
      this.mostInFlight = Math.max(this.mostInFlight, this.#requests.length)
    })
  }

  #end(request: Request): void {
    if (this.unruly && request.mayFail && this.#next(5) === 0) {
      request.perform(() => this.#next(2) === 0)
      request.reject(new Fault('IO', 'the image is having a bad day'))
    } else {
      request.perform(() => true)
      request.resolve()
    }
  }
}

/** Timers that go off when the test says so. */
export class ManualTimers implements Timers {
  readonly waiting: { readonly ms: number; readonly run: () => void }[] = []

  after(ms: number, run: () => void): () => void {
    const timer = { ms, run }
    this.waiting.push(timer)
    return () => {
      const index = this.waiting.indexOf(timer)
      if (index !== -1) this.waiting.splice(index, 1)
    }
  }

  fireOne(which = 0): void {
    const [timer] = this.waiting.splice(which % Math.max(1, this.waiting.length), 1)
    timer?.run()
  }
}

/** Timers that go off as soon as the event loop has had a turn, however long they were asked to wait. */
export const IMPATIENT: Timers = {
  after: (_ms, run) => {
    const handle = setImmediate(run)
    return () => clearImmediate(handle)
  },
}

/** Lets everything happen that is not waiting for a request or timer. */
export async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
}

/** Finishes requests and fires timers until `done` has resolved. */
export async function runUntil(
  done: Promise<void>,
  image: UnrulyImage,
  timers?: ManualTimers,
): Promise<void> {
  const state = { over: false }
  const end = done.finally(() => (state.over = true))
  end.catch(() => undefined)
  const isOver = () => state.over
  while (!isOver()) {
    image.finishOne(0)
    timers?.fireOne()
    await settle()
  }
  await end
}

/** Waits for what may not need waiting for. */
export async function completed(result: MaybePromise<void>): Promise<void> {
  if (isPromise(result)) await result
}

/** Whole sectors, each filled with `tag`: 0 is a sector of zeroes. */
export function tagged(tag: number, length: number): Buffer {
  const bytes = Buffer.alloc(Math.ceil(length / 4) * 4)
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(tag, at)
  return bytes.subarray(0, length)
}

/** The tag of each sector of `bytes`; -1 for a sector that is a mixture. */
export function tagsOf(bytes: Buffer): number[] {
  const tags: number[] = []
  for (let at = 0; at < bytes.length; at += SECTOR) {
    const sector = bytes.subarray(at, at + SECTOR)
    const tag = sector.readUInt32LE(0)
    tags.push(sector.equals(tagged(tag, sector.length)) ? tag : -1)
  }
  return tags
}
