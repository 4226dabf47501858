/**
 * A block device in memory for the NBD tests: answers at once, later, or when told to, and fails on demand. It checks
 * what the guard would check, and remembers every contract violation of its caller.
 */

import type {
  BlockDevice,
  BlockMaps,
  Capabilities,
  Extent,
  Geometry,
} from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'
import { MiB } from '../../core/units.ts'

export const ALL_CAPABILITIES: Capabilities = {
  flush: true,
  fua: true,
  trim: true,
  zero: true,
  fastZero: true,
  status: false,
  resize: false,
  cache: false,
}

/** inline: answers at once; async: in a later turn; held: when release() is called. */
export type AnswerMode = 'inline' | 'async' | 'held'

export class MemoryDevice implements BlockDevice {
  geometry: Geometry
  can: Capabilities = ALL_CAPABILITIES
  readonly bytes: Buffer
  mode: AnswerMode = 'inline'
  /** When set, every request fails with it. */
  failure: Error | undefined
  /** What status() tells; nothing but data when not set. */
  extents: readonly Extent[] | undefined
  maps: BlockMaps | undefined
  /** One line per request that reached the device: `write 0+512 fua=1`. */
  readonly calls: string[] = []
  /** Requests that a guarded device should never see. */
  readonly violations: string[] = []
  #held: (() => void)[] = []
  #arrivals: { count: number; resolve: () => void }[] = []

  constructor(size: number, geometry: Partial<Geometry> = {}) {
    this.bytes = Buffer.alloc(size)
    this.geometry = {
      size,
      block: { min: 1, preferred: 4096, max: 32 * MiB },
      readOnly: false,
      rotational: false,
      ...geometry,
    }
  }

  /** Requests waiting for release(). */
  get held(): number {
    return this.#held.length
  }

  /** Resolves when `count` requests wait for release(). */
  whenHeld(count: number): Promise<void> {
    if (this.#held.length >= count) return Promise.resolve()
    return new Promise((resolve) => this.#arrivals.push({ count, resolve }))
  }

  /** Answers everything that waits. */
  release(): void {
    const held = this.#held
    this.#held = []
    for (const answer of held) answer()
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    return this.#answer('read', at, into.length, 0, () => {
      this.bytes.copy(into, 0, at, at + into.length)
    })
  }

  write(from: Buffer, at: number, flags: number): MaybePromise<void> {
    return this.#answer('write', at, from.length, flags, () => {
      from.copy(this.bytes, at)
    })
  }

  zero(at: number, length: number, flags: number): MaybePromise<void> {
    return this.#answer('zero', at, length, flags, () => {
      this.#clear(at, length)
    })
  }

  trim(at: number, length: number, flags: number): MaybePromise<void> {
    return this.#answer('trim', at, length, flags, () => {
      this.#clear(at, length)
    })
  }

  flush(): MaybePromise<void> {
    return this.#answer('flush', 0, 0, 0, () => undefined)
  }

  /** The part of `extents` that lies in the range, the last one not cut to it. */
  status(at: number, length: number): MaybePromise<Extent[]> {
    const told = this.extents ?? [{ at: 0, length: this.geometry.size, kind: 'data' }]
    return this.#answer('status', at, length, 0, () =>
      told
        .filter((extent) => extent.at + extent.length > at && extent.at < at + length)
        .map((extent) => {
          const from = Math.max(extent.at, at)
          return { ...extent, at: from, length: extent.at + extent.length - from }
        }),
    )
  }

  cache(at: number, length: number): MaybePromise<void> {
    return this.#answer('cache', at, length, 0, () => undefined)
  }

  resize(): Promise<void> {
    return Promise.reject(new Fault('NOT_SUPPORTED', 'this device has one size'))
  }

  close(): Promise<void> {
    return Promise.resolve()
  }

  /** The disk may be larger than the memory behind it, which is then all that is kept of it. */
  #clear(at: number, length: number): void {
    const { length: kept } = this.bytes
    this.bytes.fill(0, Math.min(at, kept), Math.min(at + length, kept))
  }

  #answer<T>(
    what: string,
    at: number,
    length: number,
    flags: number,
    act: () => T,
  ): MaybePromise<T> {
    this.calls.push(`${what} ${at}+${length} flags=${flags}`)
    if (what !== 'flush' && length === 0) this.violations.push(`${what} of nothing`)
    if (!Number.isSafeInteger(at) || at < 0 || length < 0) this.violations.push(`${what} at ${at}`)
    const answer = (): T => {
      if (this.failure !== undefined) throw this.failure
      if (at + length > this.geometry.size) {
        const code = what === 'write' || what === 'zero' ? 'NO_SPACE' : 'INVALID'
        throw new Fault(code, 'beyond the end of the disk')
      }
      return act()
    }
    if (this.mode === 'inline') return answer()
    if (this.mode === 'async') {
      return new Promise<void>((resolve) => setImmediate(resolve)).then(answer)
    }
    const held = new Promise<void>((resolve) => this.#held.push(resolve)).then(answer)
    this.#arrivals = this.#arrivals.filter(({ count, resolve }) => {
      if (this.#held.length < count) return true
      resolve()
      return false
    })
    return held
  }
}
