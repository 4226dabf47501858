/**
 * A device for tests of what stands above it: keeps bytes, insists on its block size, records what it is asked, and
 * answers when the test says so.
 */

import assert from 'node:assert/strict'

import type {
  BlockDevice,
  BlockMaps,
  Capabilities,
  Extent,
  Geometry,
} from '../../core/block-device.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'

export interface RecordingOptions {
  readonly size?: number
  readonly min?: number
  readonly max?: number
  readonly readOnly?: boolean
  readonly can?: Partial<Capabilities>
  /** Whether requests answer at once, or in a later turn of the event loop. */
  readonly later?: boolean
}

const ALL: Capabilities = {
  flush: true,
  fua: true,
  trim: true,
  zero: true,
  fastZero: true,
  status: true,
  resize: true,
  cache: false,
}

export class RecordingDevice implements BlockDevice {
  geometry: Geometry
  readonly can: Capabilities
  bytes: Buffer
  /** What was asked: `write 0+4096 fua`, and so on. */
  readonly calls: string[] = []
  maps: BlockMaps | undefined
  /** Awaited by every request before it answers, when `later` is set. */
  gate: Promise<void> = Promise.resolve()
  readonly #later: boolean

  constructor(options: RecordingOptions = {}) {
    const { size = 64 * 1024, min = 1, max = 32 * 1024 * 1024, readOnly = false } = options
    this.geometry = { size, block: { min, preferred: min, max }, readOnly, rotational: false }
    this.can = { ...ALL, ...options.can }
    this.bytes = Buffer.alloc(size)
    this.#later = options.later ?? false
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    this.#record('read', at, into.length, 0)
    return this.#answer(() => {
      this.bytes.copy(into, 0, at, at + into.length)
    })
  }

  write(from: Buffer, at: number, flags: number): MaybePromise<void> {
    this.#record('write', at, from.length, flags)
    return this.#answer(() => {
      from.copy(this.bytes, at)
    })
  }

  zero(at: number, length: number, flags: number): MaybePromise<void> {
    assert.ok(this.can.zero)
    this.#record('zero', at, length, flags)
    return this.#answer(() => {
      this.bytes.fill(0, at, at + length)
    })
  }

  trim(at: number, length: number, flags: number): MaybePromise<void> {
    assert.ok(this.can.trim)
    this.#record('trim', at, length, flags)
    return this.#answer(() => {
      this.bytes.fill(0, at, at + length)
    })
  }

  flush(): MaybePromise<void> {
    this.calls.push('flush')
    return this.#answer(() => undefined)
  }

  status(at: number, length: number): Extent[] {
    this.#record('status', at, length, 0)
    return [{ at, length, kind: 'data' }]
  }

  cache(at: number, length: number): MaybePromise<void> {
    assert.ok(this.can.cache)
    this.#record('cache', at, length, 0)
    return this.#answer(() => undefined)
  }

  resize(size: number): Promise<void> {
    this.calls.push(`resize ${size}`)
    const bytes = Buffer.alloc(size)
    this.bytes.copy(bytes)
    this.bytes = bytes
    this.geometry = { ...this.geometry, size }
    return Promise.resolve()
  }

  close(): Promise<void> {
    this.calls.push('close')
    return Promise.resolve()
  }

  #record(what: string, at: number, length: number, flags: number): void {
    const { size, block } = this.geometry
    const end = at + length
    assert.ok(length > 0 && at >= 0 && end <= size, `${what} lies within the disk`)
    assert.ok(at % block.min === 0, `${what} at ${at} begins with a block`)
    assert.ok(end % block.min === 0 || end === size, `${what} to ${end} ends with a block`)
    const marks = ['fua', 'no-hole', 'fast'].filter((_, bit) => (flags & (1 << bit)) !== 0)
    this.calls.push([`${what} ${at}+${length}`, ...marks].join(' '))
  }

  #answer(work: () => void): MaybePromise<void> {
    if (!this.#later) {
      work()
      return undefined
    }
    return this.gate.then(work)
  }
}
