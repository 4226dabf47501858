/**
 * A replicated disk as its export has it, whatever role the replica has: each request goes to the present role's disk.
 *
 * Invariant: capabilities and maps are the same from open to close, since clients learn them once; so is the geometry, but
 * for a size that grows.
 */

import type {
  BlockDevice,
  BlockMaps,
  Capabilities,
  Extent,
  Geometry,
  RequestFlags,
} from '../core/block-device.ts'
import type { ChangeLog } from '../core/change-log.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'
import { sectorGeometry } from './sector-geometry.ts'

export interface ReplicaDiskHooks {
  /** Changes the size of the image, and what the group knows of it. @throws Fault, with all as it was */
  resize(size: number): Promise<void>
  close(): Promise<void>
}

export class ReplicaDisk implements BlockDevice {
  readonly name: string
  readonly can: Capabilities
  readonly maps: BlockMaps
  readonly #hooks: ReplicaDiskHooks
  #geometry: Geometry
  readonly #image: BlockDevice
  #device: BlockDevice

  /** @param image what every role stands on */
  constructor(name: string, image: BlockDevice, device: BlockDevice, hooks: ReplicaDiskHooks) {
    this.name = name
    this.#geometry = sectorGeometry(image.geometry)
    this.can = { ...image.can, trim: image.can.trim && image.can.zero }
    // A secondary does not know what changed since the last checkpoint: all of it, possibly.
    this.maps = {
      dirty: (at, length) => this.#device.maps?.dirty?.(at, length) ?? [{ at, length, value: 1 }],
    }
    this.#image = image
    this.#device = device
    this.#hooks = hooks
  }

  /** As the group has agreed on it: the image may be ahead for a moment. */
  get geometry(): Geometry {
    return this.#geometry
  }

  get changeLog(): ChangeLog | undefined {
    return this.#image.changeLog
  }

  /** The replica has changed its role; requests that are under way end where they began. */
  use(device: BlockDevice): void {
    this.#device = device
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    return this.#device.read(into, at)
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    return this.#device.write(from, at, flags)
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#device.zero(at, length, flags)
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#device.trim(at, length, flags)
  }

  flush(): MaybePromise<void> {
    return this.#device.flush()
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    return this.#device.status(at, length)
  }

  cache(at: number, length: number): MaybePromise<void> {
    return this.#device.cache?.(at, length)
  }

  async resize(size: number): Promise<void> {
    await this.#hooks.resize(size)
    this.#geometry = sectorGeometry(this.#image.geometry)
  }

  stopWaiting(): void {
    this.#image.stopWaiting?.()
  }

  close(): Promise<void> {
    return this.#hooks.close()
  }
}
