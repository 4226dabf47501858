/**
 * The file (or block device) that an image is stored in: reads past its end give zeroes, and it grows ahead of need.
 *
 * Invariants:
 *  - A write lies within the file: whoever allocates has made the file large enough before.
 *  - Bytes by which the file has grown here are zero until somebody writes them.
 */

import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { MiB } from '../../core/units.ts'

/** The file grows by an eighth of its size, within these bounds, so that few requests wait for it to grow. */
const LEAST_GROWTH = 1 * MiB
const MOST_GROWTH = 64 * MiB

export class HostFile {
  readonly device: BlockDevice
  /** For messages. */
  readonly path: string
  /** The end of what was asked for; the file may be larger until it is closed. */
  #wanted: number
  #growing: Promise<void> | undefined
  /** Requests for room beyond this byte let the file grow ahead. */
  #aheadFrom = Number.MAX_SAFE_INTEGER

  constructor(device: BlockDevice, path: string) {
    this.device = device
    this.path = path
    this.#wanted = device.geometry.size
  }

  get size(): number {
    return this.device.geometry.size
  }

  /** Whether new space is zero because the file grows by it. */
  get grows(): boolean {
    return this.device.can.resize
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    const there = Math.max(0, Math.min(into.length, this.size - at))
    if (there === into.length) return this.device.read(into, at)
    into.fill(0, there)
    return there === 0 ? undefined : this.device.read(into.subarray(0, there), at)
  }

  write(from: Buffer, at: number): MaybePromise<void> {
    return this.device.write(from, at, 0)
  }

  flush(): MaybePromise<void> {
    return this.device.flush()
  }

  /** Makes the file at least `end` bytes long. */
  ensure(end: number): MaybePromise<void> {
    if (end > this.#wanted) this.#wanted = end
    if (end > this.size) return this.#grow(end)
    // Once the room is half used up, more of it comes while requests go on. Where that fails, whoever needs it is told.
    if (this.#growing === undefined && end > this.#aheadFrom)
      this.#grow(this.size + 1).catch(ignore)
    return undefined
  }

  /** Gives up what was grown ahead and never used. */
  async fit(): Promise<void> {
    await this.#growing?.catch(ignore)
    if (this.grows && this.#wanted < this.size) await this.device.resize(this.#wanted)
  }

  /** Cuts the file at `end`, where nothing is used any more. */
  async truncate(end: number): Promise<void> {
    this.#wanted = end
    await this.fit()
  }

  async #grow(end: number): Promise<void> {
    if (!this.grows) {
      throw new Fault('NO_SPACE', 'the image does not fit the device that it is stored on', {
        where: `${this.path} at byte ${end}`,
        remedy: 'enlarge the device, and open the image again',
      })
    }
    while (this.size < end) {
      if (this.#growing !== undefined) {
        await this.#growing
        continue
      }
      const ahead = Math.min(Math.max(this.size / 8, LEAST_GROWTH), MOST_GROWTH)
      const before = this.size
      const size = Math.ceil(Math.max(end, before + ahead) / MiB) * MiB
      // Not again where it fails, unless somebody needs it.
      this.#aheadFrom = Number.MAX_SAFE_INTEGER
      this.#growing = this.device.resize(size).finally(() => (this.#growing = undefined))
      await this.#growing
      this.#aheadFrom = before + (size - before) / 2
    }
  }
}

function ignore(): void {
  // Whoever waits for the same growth gets the error.
}

/** Waits until all have ended, then fails as the first of them that failed: nobody's buffer is in use any more. */
export async function allEnded(started: readonly MaybePromise<void>[]): Promise<void> {
  const results = await Promise.allSettled(started.filter(isPromise))
  for (const result of results) if (result.status === 'rejected') throw result.reason
}
