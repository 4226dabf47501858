/**
 * The ram driver: a disk in memory, `ram:10M`, gone when it is closed. Everything completes at once.
 *
 * Invariants:
 *  - A page exists only where something was written since the range was last zeroed or trimmed; what has no page
 *    reads as zeroes.
 *  - Bytes of the last page beyond the end of the disk are zero, so that growing shows zeroes.
 */

import { assert } from '../core/assert.ts'
import {
  FAST_ZERO,
  NO_HOLE,
  type BlockDevice,
  type Capabilities,
  type Extent,
  type Geometry,
  type RequestFlags,
} from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import { GiB, KiB, MiB, parseSize } from '../core/units.ts'
import type { Driver } from './driver.ts'

const PAGE = 16 * KiB
/** Bytes that one status() looks at: a longer look would keep everybody else waiting. */
const STATUS_LIMIT = 4 * GiB

export class RamDevice implements BlockDevice {
  geometry: Geometry
  readonly can: Capabilities
  readonly #pages = new Map<number, Buffer>()
  #closed = false

  constructor(size: number, readOnly = false) {
    this.geometry = geometryOf(size, readOnly)
    this.can = {
      flush: true,
      fua: true,
      trim: !readOnly,
      zero: !readOnly,
      fastZero: !readOnly,
      status: true,
      resize: !readOnly,
      cache: false,
    }
  }

  /** Bytes of memory in use for content. */
  get bytesAllocated(): number {
    return this.#pages.size * PAGE
  }

  read(into: Buffer, at: number): undefined {
    this.#admit(at, into.length)
    for (let done = 0; done < into.length;) {
      const within = (at + done) % PAGE
      const part = Math.min(PAGE - within, into.length - done)
      const page = this.#pages.get((at + done - within) / PAGE)
      if (page === undefined) into.fill(0, done, done + part)
      else page.copy(into, done, within, within + part)
      done += part
    }
  }

  write(from: Buffer, at: number): undefined {
    this.#admit(at, from.length)
    for (let done = 0; done < from.length;) {
      const within = (at + done) % PAGE
      const part = Math.min(PAGE - within, from.length - done)
      from.copy(this.#page((at + done - within) / PAGE), within, done, done + part)
      done += part
    }
  }

  zero(at: number, length: number, flags: RequestFlags): undefined {
    this.#admit(at, length)
    const keep = (flags & NO_HOLE) !== 0
    if (keep && (flags & FAST_ZERO) !== 0) {
      throw new Fault('NOT_SUPPORTED', 'memory that stays allocated is zeroed by writing', {
        where: `ram disk at byte ${at}`,
      })
    }
    this.#clear(at, length, keep)
  }

  trim(at: number, length: number): undefined {
    this.#admit(at, length)
    this.#clear(at, length, false)
  }

  flush(): undefined {
    assert(!this.#closed, 'no request follows the close')
  }

  status(at: number, length: number): Extent[] {
    this.#admit(at, length)
    const extents: Extent[] = []
    const end = at + Math.min(length, STATUS_LIMIT)
    for (let position = at; position < end;) {
      const page = Math.floor(position / PAGE)
      const stop = Math.min((page + 1) * PAGE, end)
      const kind = this.#pages.has(page) ? 'data' : 'hole'
      const last = extents.at(-1)
      if (last?.kind === kind) {
        extents[extents.length - 1] = { ...last, length: stop - last.at }
      } else extents.push({ at: position, length: stop - position, kind })
      position = stop
    }
    return extents
  }

  resize(size: number): Promise<void> {
    const last = Math.ceil(size / PAGE)
    for (const page of this.#pages.keys()) if (page >= last) this.#pages.delete(page)
    if (size % PAGE !== 0) this.#pages.get(last - 1)?.fill(0, size % PAGE)
    this.geometry = geometryOf(size, this.geometry.readOnly)
    return Promise.resolve()
  }

  close(): Promise<void> {
    this.#closed = true
    this.#pages.clear()
    return Promise.resolve()
  }

  #admit(at: number, length: number): void {
    assert(!this.#closed, 'no request follows the close')
    assert(at >= 0 && at + length <= this.geometry.size, 'a request lies within the disk')
  }

  #page(number: number): Buffer {
    let page = this.#pages.get(number)
    if (page === undefined) {
      try {
        page = Buffer.alloc(PAGE)
      } catch (cause) {
        throw new Fault('NO_MEMORY', 'no memory for another page', { where: 'ram disk', cause })
      }
      this.#pages.set(number, page)
    }
    return page
  }

  /** Whole pages are dropped unless they must stay allocated; parts of pages are overwritten. */
  #clear(at: number, length: number, keep: boolean): void {
    const end = at + length
    // A range may be far larger than what there is to clear.
    if (!keep && length / PAGE > this.#pages.size) return this.#clearPages(at, end)
    for (let position = at; position < end;) {
      const within = position % PAGE
      const number = (position - within) / PAGE
      const stop = Math.min(position - within + PAGE, end)
      const whole = within === 0 && (stop - position === PAGE || stop === this.geometry.size)
      if (whole && !keep) this.#pages.delete(number)
      else if (keep) this.#page(number).fill(0, within, within + stop - position)
      else this.#pages.get(number)?.fill(0, within, within + stop - position)
      position = stop
    }
  }

  /** Clears [at, end) page by page of those that exist. */
  #clearPages(at: number, end: number): void {
    for (const [number, page] of this.#pages) {
      const from = Math.max(at - number * PAGE, 0)
      const to = Math.min(end, this.geometry.size) - number * PAGE
      if (from >= PAGE || to <= 0) continue
      const whole = from === 0 && (to >= PAGE || end === this.geometry.size)
      if (whole) this.#pages.delete(number)
      else page.fill(0, from, Math.min(to, PAGE))
    }
  }
}

function geometryOf(size: number, readOnly: boolean): Geometry {
  return {
    size,
    block: { min: 1, preferred: 4 * KiB, max: 32 * MiB },
    readOnly,
    rotational: false,
  }
}

export const ram: Driver = {
  name: 'ram',
  kind: 'backend',
  target: 'size of the disk, such as 10M',
  keys: {},
  open: (stage, _below, context) => {
    const size = parseSize(stage.target)
    if (size === 0) {
      throw new Fault('INVALID', 'a ram disk of no bytes', {
        where: `ram:${stage.target}`,
        remedy: 'give a size such as 10M',
      })
    }
    return Promise.resolve(new RamDevice(size, context.readOnly))
  },
}
