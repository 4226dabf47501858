/**
 * The cache layer: keeps what was read in memory, in pages. Writes go through, and forget the pages that they touch.
 *
 * Invariants:
 *  - A read sees what the disk below held at some moment while the read was under way, as without a cache: pages are
 *    forgotten when a change begins, and none is kept until it has ended, well or badly.
 *  - Memory stays within the limit; what does not fit is read from below without being kept.
 *  - A page that cannot be read does not fail a read of another part of it.
 */

import type { BlockDevice, RequestFlags } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { ensure, isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { formatSize, KiB, MiB, parseSize, TiB } from '../../core/units.ts'
import { deviceBelow, sizeSetting, type Driver } from '../driver.ts'
import { Layer } from '../../core/layer.ts'
import { PageCache } from './page-cache.ts'

export interface CacheOptions {
  /** Bytes of memory. */
  readonly memory: number
  /** Bytes; a multiple of the blocks of the disk. */
  readonly page: number
}

const LEAST_PAGES = 16
const ALL = { first: 0, last: Infinity }
/** A read of more than this part of the cache would push out everything else. */
const LARGEST_PART = 1 / 4

export class CacheDevice extends Layer {
  readonly #page: number
  readonly #pages: PageCache
  readonly #largest: number

  constructor(below: BlockDevice, { memory, page }: CacheOptions) {
    super(below)
    this.#page = page
    this.#pages = new PageCache(Math.floor(memory / page))
    this.#largest = memory * LARGEST_PART
  }

  /** Bytes of memory in use for pages. */
  get bytesHeld(): number {
    return this.#pages.size * this.#page
  }

  override read(into: Buffer, at: number): MaybePromise<void> {
    if (into.length > this.#largest) return this.below.read(into, at)
    let waits: Promise<void>[] | undefined
    for (let done = 0; done < into.length;) {
      const within = (at + done) % this.#page
      const part = Math.min(this.#page - within, into.length - done)
      const bytes = this.#pages.get((at + done - within) / this.#page)
      if (bytes === undefined) {
        const wait = this.#attempt(into.subarray(done, done + part), at + done)
        if (wait !== undefined) (waits ??= []).push(wait)
      } else bytes.copy(into, done, within, within + part)
      done += part
    }
    if (waits === undefined) return undefined
    return waits.length === 1 ? waits[0] : allSettled(waits)
  }

  override write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    return this.#change(at, from.length, () => this.below.write(from, at, flags))
  }

  override zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#change(at, length, () => this.below.zero(at, length, flags))
  }

  override trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#change(at, length, () => this.below.trim(at, length, flags))
  }

  override resize(size: number): Promise<void> {
    // The last page has the length that the disk's end gave it. No request is in flight (drivers/guard.ts).
    this.#pages.forget(ALL)
    return super.resize(size)
  }

  override close(): Promise<void> {
    this.#pages.forget(ALL)
    return super.close()
  }

  #change(at: number, length: number, work: () => MaybePromise<void>): MaybePromise<void> {
    const change = this.#pages.beginChange(
      Math.floor(at / this.#page),
      Math.floor((at + length - 1) / this.#page),
    )
    return ensure(work, () => this.#pages.endChange(change))
  }

  /** As #fetch(), a failure being always a rejected promise, so that the other parts of a read are waited for. */
  #attempt(into: Buffer, at: number): Promise<void> | undefined {
    try {
      const wait = this.#fetch(into, at)
      return isPromise(wait) ? wait : undefined
    } catch (error) {
      return Promise.reject(error instanceof Error ? error : new Error(String(error)))
    }
  }

  /** Fills `into`, a part of one page, that page being kept. */
  #fetch(into: Buffer, at: number): MaybePromise<void> {
    const within = at % this.#page
    const start = at - within
    const serve = (bytes: Buffer, arrived: boolean): MaybePromise<void> => {
      // The page has failed; what was asked for may be another part of it, and has an error of its own if not.
      if (!arrived) return this.below.read(into, at)
      bytes.copy(into, 0, within, within + into.length)
      return undefined
    }
    const other = this.#pages.fetchOf(start / this.#page)
    if (other?.arrived !== undefined) {
      return other.arrived.then((arrived) => serve(other.bytes, arrived))
    }
    const length = Math.min(this.#page, this.below.geometry.size - start)
    const fetch = this.#pages.begin(start / this.#page, length)
    if (fetch === undefined) return this.below.read(into, at)
    const end = (arrived: boolean): boolean => {
      this.#pages.end(fetch, arrived)
      return arrived
    }
    let reading: MaybePromise<void>
    try {
      reading = this.below.read(fetch.bytes, start)
    } catch {
      return serve(fetch.bytes, end(false))
    }
    if (!isPromise(reading)) return serve(fetch.bytes, end(true))
    fetch.arrived = reading.then(
      () => end(true),
      () => end(false),
    )
    return fetch.arrived.then((arrived) => serve(fetch.bytes, arrived))
  }
}

/** Waits for all, because all use the caller's buffer; then fails as the first that failed. */
async function allSettled(waits: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(waits)) {
    if (result.status === 'rejected') throw result.reason
  }
}

const USUAL_PAGE = 64 * KiB

export const cache: Driver = {
  name: 'cache',
  kind: 'layer',
  target: 'memory that it may use, such as 256M',
  keys: {
    page: {
      meaning: 'bytes that are read and kept together, a power of two',
      values: `4K-4M, ${USUAL_PAGE / KiB}K unless given`,
    },
  },
  open: (stage, given) => {
    const below = deviceBelow(given)
    const where = `cache:${stage.target}`
    const memory = parseSize(stage.target)
    const page = sizeSetting(stage, 'page', { least: 4 * KiB, most: 4 * MiB }, USUAL_PAGE)
    const { min, max } = below.geometry.block
    if (!Number.isInteger(Math.log2(page)) || page % min !== 0 || page > max) {
      throw new Fault('INVALID', `pages of ${formatSize(page)} do not fit the disk below`, {
        where,
        remedy: `give page= a power of two from ${formatSize(min)} to ${formatSize(max)}`,
      })
    }
    if (memory < LEAST_PAGES * page || memory > TiB) {
      throw new Fault('INVALID', `a cache of ${formatSize(memory)}`, {
        where,
        remedy: `give it ${LEAST_PAGES} pages of ${formatSize(page)} or more, and at most 1 TiB`,
      })
    }
    return Promise.resolve(new CacheDevice(below, { memory, page }))
  },
}
