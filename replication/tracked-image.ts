/**
 * The image of a replica: while the replica is a primary, every region that is changed is marked as changed first, so
 * that this is known after a crash.
 *
 * Invariant 15: no write, zero or trim of a primary reaches the image before its regions are marked durably.
 */

import type {
  BlockDevice,
  Capabilities,
  Extent,
  Geometry,
  RequestFlags,
} from '../core/block-device.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'
import type { RegionMap } from './regions/region-map.ts'

export class TrackedImage implements BlockDevice {
  readonly #below: BlockDevice
  #regions: RegionMap | undefined

  constructor(below: BlockDevice) {
    this.#below = below
  }

  get geometry(): Geometry {
    return this.#below.geometry
  }

  get can(): Capabilities {
    return this.#below.can
  }

  /** From now on changes are marked. */
  track(regions: RegionMap | undefined): void {
    this.#regions = regions
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    return this.#below.read(into, at)
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    const marking = this.#mark(at, from.length)
    if (marking === undefined) return this.#below.write(from, at, flags)
    return marking.then(() => this.#below.write(from, at, flags))
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const marking = this.#mark(at, length)
    if (marking === undefined) return this.#below.zero(at, length, flags)
    return marking.then(() => this.#below.zero(at, length, flags))
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const marking = this.#mark(at, length)
    if (marking === undefined) return this.#below.trim(at, length, flags)
    return marking.then(() => this.#below.trim(at, length, flags))
  }

  flush(): MaybePromise<void> {
    return this.#below.flush()
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    return this.#below.status(at, length)
  }

  cache(at: number, length: number): MaybePromise<void> {
    return this.#below.cache?.(at, length)
  }

  resize(size: number): Promise<void> {
    return this.#below.resize(size)
  }

  close(): Promise<void> {
    return this.#below.close()
  }

  #mark(at: number, length: number): Promise<void> | undefined {
    if (this.#regions === undefined || this.#regions.has(at, length)) return undefined
    return this.#regions.mark(at, length)
  }
}
