/**
 * The image of a replica: while the replica is a primary, every region that is changed is marked as changed first, so
 * that this is known after a crash.
 *
 * Invariants:
 *  - 15 No write, zero or trim of a primary reaches the image before its regions are marked durably.
 *  - It has the size that its group has agreed on: what lies behind that, where the image is ahead, nobody uses.
 */

import type { BlockDevice, Geometry, RequestFlags } from '../core/block-device.ts'
import { Layer } from '../core/layer.ts'
import { isPromise, type MaybePromise } from '../core/maybe-promise.ts'
import type { RegionMap } from './regions/region-map.ts'

export class TrackedImage extends Layer {
  #regions: RegionMap | undefined
  #size: number

  constructor(below: BlockDevice) {
    super(below)
    this.#size = below.geometry.size
  }

  override get geometry(): Geometry {
    const { geometry } = this.below
    return geometry.size === this.#size ? geometry : { ...geometry, size: this.#size }
  }

  /** The image has grown, and the whole group knows. */
  agree(size: number): void {
    this.#size = size
  }

  /** From now on changes are marked; or, with undefined, not any more. */
  track(regions: RegionMap | undefined): void {
    this.#regions = regions
  }

  override write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    const marking = this.#mark(at, from.length)
    if (marking === undefined) return this.#hold(at, from.length, this.below.write(from, at, flags))
    return marking.then(() => this.#hold(at, from.length, this.below.write(from, at, flags)))
  }

  override zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const marking = this.#mark(at, length)
    if (marking === undefined) return this.#hold(at, length, this.below.zero(at, length, flags))
    return marking.then(() => this.#hold(at, length, this.below.zero(at, length, flags)))
  }

  override trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const marking = this.#mark(at, length)
    if (marking === undefined) return this.#hold(at, length, this.below.trim(at, length, flags))
    return marking.then(() => this.#hold(at, length, this.below.trim(at, length, flags)))
  }

  /** A change that takes its time keeps its regions marked until it has ended. */
  #hold(at: number, length: number, change: MaybePromise<void>): MaybePromise<void> {
    const regions = this.#regions
    if (regions === undefined || !isPromise(change)) return change
    regions.hold(at, length)
    return change.finally(() => regions.release(at, length))
  }

  #mark(at: number, length: number): Promise<void> | undefined {
    if (this.#regions === undefined || this.#regions.has(at, length)) return undefined
    return this.#regions.mark(at, length)
  }
}
