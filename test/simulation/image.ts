/**
 * A disk image under virtual time. Requests complete after random delays in any order; a write reaches the bytes at one
 * or two instants between its start and its completion, a read looks at them at one, and both use the caller's buffer
 * until then, as a real device would.
 *
 * `completed` is what the image is known to hold: a sector changes there when the write that changed it ends.
 */

import type { BlockDevice, Capabilities, Extent, Geometry } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import type { Random } from './random.ts'
import type { Life, Scheduler } from './scheduler.ts'
import { contentOf, sectorsOf, WORDS, wordsOf, type Content } from './sectors.ts'

/** Shares of requests that fail, and the longest that one takes. Changed while the simulation runs. */
export interface Conduct {
  failures: { read: number; write: number; flush: number }
  slowestMs: number
  /** Share of requests that are done at once, without a promise. */
  atOnce: number
  /** Whether it can zero a range by itself. */
  zeroes: boolean
}

/** A tag that nobody writes, and that no sector has in the beginning: what is corrupted is not what it was. */
const CORRUPT = -2

interface Write {
  readonly at: number
  readonly length: number
  /** Copies sectors [from, to) of the request into the bytes. */
  readonly apply: (from: number, to: number) => void
}

export class VirtualImage implements BlockDevice {
  geometry: Geometry
  readonly can: Capabilities
  /** Other ones when the image has grown. */
  bytes: Buffer
  completed: Content
  readonly conduct: Conduct
  /** The oracle is looking: reads answer at once, with the bytes, or with what is known to be complete. */
  probing: 'bytes' | 'completed' | undefined
  /** Whether any request was ever made to fail. */
  hasFailed = false
  life: Life
  readonly #scheduler: Scheduler
  readonly #random: Random
  #underWay = new Set<Write>()
  /** What was flushed; the rest is in a cache that loses its power with the process. */
  #flushed: Buffer

  constructor(
    content: Buffer,
    world: { scheduler: Scheduler; random: Random },
    life: Life,
    conduct: Conduct,
  ) {
    this.bytes = Buffer.from(new ArrayBuffer(content.length))
    content.copy(this.bytes)
    this.completed = contentOf(this.bytes)
    this.#flushed = Buffer.from(this.bytes)
    this.#scheduler = world.scheduler
    this.#random = world.random
    this.life = life
    this.conduct = conduct
    this.geometry = {
      size: content.length,
      block: { min: SECTOR, preferred: SECTOR, max: 1 * MiB },
      readOnly: false,
      rotational: false,
    }
    this.can = {
      flush: true,
      fua: true,
      trim: true,
      zero: true,
      fastZero: false,
      status: false,
      resize: true,
      cache: false,
    }
  }

  get sectors(): number {
    return this.completed.length
  }

  /** Whether a write of this sector has begun and not ended. */
  isChanging(sector: number): boolean {
    const at = sector * SECTOR
    for (const write of this.#underWay)
      if (write.at <= at && at < write.at + write.length) return true
    return false
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    const look = (): void => {
      this.bytes.copy(into, 0, at, at + into.length)
    }
    if (this.probing === 'bytes') return look()
    if (this.probing === 'completed') {
      const words = wordsOf(into)
      for (let sector = 0; sector < into.length / SECTOR; sector += 1)
        words.fill(this.completed[at / SECTOR + sector]!, sector * WORDS, (sector + 1) * WORDS)
      return
    }
    return this.#perform('read', [look])
  }

  write(from: Buffer, at: number): MaybePromise<void> {
    return this.#change({
      at,
      length: from.length,
      apply: (first, end) => {
        from.copy(this.bytes, at + first * SECTOR, first * SECTOR, end * SECTOR)
      },
    })
  }

  zero(at: number, length: number): MaybePromise<void> {
    if (!this.conduct.zeroes) throw new Fault('NOT_SUPPORTED', 'this image cannot zero')
    return this.#change({
      at,
      length,
      apply: (first, end) => {
        this.bytes.fill(0, at + first * SECTOR, at + end * SECTOR)
      },
    })
  }

  trim(at: number, length: number): MaybePromise<void> {
    return this.zero(at, length)
  }

  flush(): MaybePromise<void> {
    const look = (): void => {
      if (this.#flushed.length !== this.bytes.length)
        this.#flushed = Buffer.alloc(this.bytes.length)
      this.bytes.copy(this.#flushed)
    }
    return this.#perform('flush', [look])
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    return [{ at, length, kind: 'data' }]
  }

  /** What it gains are zeroes; a crash before a flush may take it back. */
  async resize(size: number): Promise<void> {
    await this.#perform('write', [() => this.#resize(size)])
  }

  #resize(size: number): void {
    const bytes = Buffer.from(new ArrayBuffer(size))
    this.bytes.copy(bytes)
    this.bytes = bytes
    const completed = new Int32Array(size / SECTOR)
    completed.set(this.completed.subarray(0, completed.length))
    this.completed = completed
    this.geometry = { ...this.geometry, size }
  }

  close(): Promise<void> {
    return Promise.resolve()
  }

  /**
   * The process is gone, and the power with it: each write that was under way has happened wholly, partly or not at
   * all, and each sector that was not flushed is as it was or as it became.
   */
  crash(): void {
    for (const write of this.#underWay) {
      const sectors = write.length / SECTOR
      write.apply(0, this.#random.pick([0, sectors, this.#random.whole(0, sectors)]))
      this.#complete(write)
    }
    this.#underWay.clear()
    if (this.#flushed.length !== this.bytes.length) this.#forgetSize()
    for (let at = 0; at < this.bytes.length; at += SECTOR)
      if (this.#random.chance(0.5)) this.#flushed.copy(this.bytes, at, at, at + SECTOR)
    this.completed.set(contentOf(this.bytes))
  }

  /** Its size was not flushed: it is as it was or as it became. */
  #forgetSize(): void {
    if (this.#random.chance(0.5)) return this.#resize(this.#flushed.length)
    const flushed = Buffer.from(this.bytes)
    this.#flushed.copy(flushed)
    this.#flushed = flushed
  }

  /** What is in a sector changes by itself, and nobody is told. */
  corrupt(sector: number): void {
    const bytes = sectorsOf(CORRUPT, 1)
    bytes.copy(this.bytes, sector * SECTOR)
    bytes.copy(this.#flushed, sector * SECTOR)
    this.completed[sector] = CORRUPT
  }

  #change(write: Write): MaybePromise<void> {
    const sectors = write.length / SECTOR
    const middle = this.#random.whole(0, sectors)
    const steps = this.#random.pick([
      [() => write.apply(0, sectors), () => undefined],
      [() => undefined, () => write.apply(0, sectors)],
      [() => write.apply(0, middle), () => write.apply(middle, sectors)],
    ])
    this.#underWay.add(write)
    return this.#perform('write', steps, () => {
      this.#underWay.delete(write)
      this.#complete(write)
    })
  }

  #complete({ at, length }: Write): void {
    this.completed.set(contentOf(this.bytes.subarray(at, at + length)), at / SECTOR)
  }

  /** Takes the steps one after the other, the last as the request ends; one that fails stops after some of them. */
  #perform(
    kind: keyof Conduct['failures'],
    steps: readonly (() => void)[],
    ended: () => void = () => undefined,
  ): MaybePromise<void> {
    const { conduct } = this
    const random = this.#random
    const fails = random.chance(conduct.failures[kind])
    const taken = fails ? steps.slice(0, random.whole(0, steps.length)) : steps
    const end = (): Fault | undefined => {
      ended()
      this.hasFailed ||= fails
      return fails ? new Fault('IO', `injected ${kind} failure`) : undefined
    }
    if (random.chance(conduct.atOnce)) {
      for (const step of taken) step()
      const fault = end()
      if (fault !== undefined) throw fault
      return
    }
    return new Promise((resolve, reject) => {
      // A device tries for long before it gives up.
      this.#walk(taken, fails ? 8 : 1, () => {
        const fault = end()
        if (fault === undefined) resolve()
        else reject(fault)
      })
    })
  }

  #walk(steps: readonly (() => void)[], slowness: number, end: () => void): void {
    const [step, ...rest] = steps
    const ms = slowness * this.#random.delay(0, this.conduct.slowestMs)
    this.#scheduler.after(ms, this.life, 'image', () => {
      step?.()
      // The last look at the bytes and the completion may also be apart.
      if (rest.length > 0 || (step !== undefined && this.#random.chance(0.5)))
        this.#walk(rest, slowness, end)
      else end()
    })
  }
}
