/**
 * The place in a pipeline where what is below can be exchanged while requests come from above.
 *
 * Invariants:
 *  - What is below is taken away only while nothing is under way in it and nothing passes: a request is answered by the
 *    pipeline that it was given to, once.
 *  - A request that comes meanwhile waits, and goes on in its turn: none is lost. Only a device that has nothing below
 *    and nothing coming (fail()) answers by itself, with a fault.
 *  - Seen from above geometry and capabilities are those of the first device from open to close, but for the size. What a
 *    later device lacks is made up for (fit.ts).
 */

import { assert } from '../../core/assert.ts'
import type {
  BlockDevice,
  BlockMap,
  BlockMaps,
  Capabilities,
  Extent,
  Geometry,
  RequestFlags,
} from '../../core/block-device.ts'
import type { ChangeLog } from '../../core/change-log.ts'
import { Fault } from '../../core/fault.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'
import { RequestGate } from '../request-gate.ts'

/** Who exchanges what is below, and closes it at the end. */
interface Owner {
  stopWaiting(): void
  close(): Promise<void>
}

export class MovableDevice implements BlockDevice {
  readonly can: Capabilities
  readonly maps: BlockMaps
  readonly #owner: Owner
  readonly #gate = new RequestGate()
  #below: BlockDevice | undefined
  /** What requests get while nothing is below and the gate is open. */
  #fault = new Fault('SHUTDOWN', 'the disk is closed')
  #geometry: Geometry
  /** The size below that #geometry was made with. */
  #size: number
  /** Told when requests go on. */
  readonly #waiting = new Set<() => void>()

  constructor(first: BlockDevice, owner: Owner) {
    this.#below = first
    this.#owner = owner
    this.#geometry = first.geometry
    this.#size = first.geometry.size
    this.can = { ...first.can }
    const names = Object.keys(first.maps ?? {}) as (keyof BlockMaps)[]
    this.maps = Object.fromEntries(names.map((name) => [name, this.#map(name)]))
  }

  get geometry(): Geometry {
    const size = this.#below?.geometry.size ?? this.#size
    if (size !== this.#size) {
      this.#size = size
      this.#geometry = { ...this.#geometry, size }
    }
    return this.#geometry
  }

  get changeLog(): ChangeLog | undefined {
    return this.#below?.changeLog
  }

  /** Whether requests wait. */
  get held(): boolean {
    return this.#gate.shut !== undefined
  }

  /** Runs `told` once, when requests do not wait any more. The same function counts once. */
  whenLetGo(told: () => void): void {
    this.#waiting.add(told)
  }

  forget(told: () => void): void {
    this.#waiting.delete(told)
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    const { shut } = this.#gate
    if (shut !== undefined) return shut.then(() => this.read(into, at))
    return this.#gate.track(this.#present().read(into, at))
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    const { shut } = this.#gate
    if (shut !== undefined) return shut.then(() => this.write(from, at, flags))
    return this.#gate.track(this.#present().write(from, at, flags))
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const { shut } = this.#gate
    if (shut !== undefined) return shut.then(() => this.zero(at, length, flags))
    return this.#gate.track(this.#present().zero(at, length, flags))
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const { shut } = this.#gate
    if (shut !== undefined) return shut.then(() => this.trim(at, length, flags))
    return this.#gate.track(this.#present().trim(at, length, flags))
  }

  flush(): MaybePromise<void> {
    const { shut } = this.#gate
    if (shut !== undefined) return shut.then(() => this.flush())
    return this.#gate.track(this.#present().flush())
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    const { shut } = this.#gate
    if (shut !== undefined) return shut.then(() => this.status(at, length))
    return this.#gate.track(this.#present().status(at, length))
  }

  cache(at: number, length: number): MaybePromise<void> {
    const { shut } = this.#gate
    if (shut !== undefined) return shut.then(() => this.cache(at, length))
    const below = this.#present()
    // It is a hint: what cannot take it does without.
    return below.can.cache ? this.#gate.track(below.cache?.(at, length)) : undefined
  }

  async resize(size: number): Promise<void> {
    const { shut } = this.#gate
    if (shut !== undefined) return shut.then(() => this.resize(size))
    const below = this.#present()
    if (!below.can.resize) throw new Fault('NOT_SUPPORTED', 'this disk cannot be resized')
    return this.#gate.track(below.resize(size))
  }

  stopWaiting(): void {
    this.#owner.stopWaiting()
  }

  close(): Promise<void> {
    return this.#owner.close()
  }

  /** Requests that come from now on wait. */
  hold(): void {
    this.#gate.close()
  }

  /** Resolves when no request is under way below. */
  drained(): Promise<void> {
    return this.#gate.drained()
  }

  /** Puts what was acknowledged on stable storage, as a request of its own that is under way until it ends. */
  async secure(): Promise<void> {
    const below = this.#present()
    if (below.can.flush) await this.#gate.track(below.flush())
  }

  /** Requests go on with what is below. */
  letGo(): void {
    this.#gate.open()
    const waiting = [...this.#waiting]
    this.#waiting.clear()
    for (const told of waiting) told()
  }

  /** What is below, if anything is; it is the caller's from now on. */
  detach(): BlockDevice | undefined {
    assert(!this.held || this.#gate.underWay === 0, 'nothing is under way in what is taken away')
    const below = this.#below
    // The size stays known while nothing is below.
    this.#size = this.geometry.size
    this.#below = undefined
    return below
  }

  attach(below: BlockDevice): void {
    assert(this.#below === undefined && this.held, 'a device takes the place of none')
    this.#below = below
    this.letGo()
  }

  /** With nothing below, requests do not wait any more, and fail. */
  fail(fault: Fault): void {
    assert(this.#below === undefined, 'what has a device below does not fail by itself')
    this.#fault = fault
    this.letGo()
  }

  /** Tells what is below that it is going to be closed. */
  stopBelow(): boolean {
    this.#below?.stopWaiting?.()
    return this.#below !== undefined
  }

  #present(): BlockDevice {
    if (this.#below === undefined) throw this.#fault
    return this.#below
  }

  /** A later device may not know as much: 1 means possibly changed, and: from the topmost layer. */
  #map(name: keyof BlockMaps): BlockMap {
    const map: BlockMap = (at, length) => {
      const { shut } = this.#gate
      if (shut !== undefined) return shut.then(() => map(at, length))
      const below = this.#present().maps?.[name]
      if (below === undefined) return [{ at, length, value: 1 }]
      return this.#gate.track(below(at, length))
    }
    return map
  }
}
