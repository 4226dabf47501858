/**
 * A disk of a replica that serves its guest: writes go through the layers of memory into the image, reads look through
 * them until they are in the image (ramdisk/disk-layers.ts).
 *
 * Invariant: a flush, and a write with FUA, completes only when no recovery can bring back what is older over it.
 */

import {
  FUA,
  type BlockDevice,
  type Capabilities,
  type Extent,
  type Geometry,
  type RequestFlags,
} from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import { isPromise, then, type MaybePromise } from '../core/maybe-promise.ts'
import type { DiskLayers } from '../ramdisk/disk-layers.ts'

/** What a disk needs of its group. */
export interface ActiveContext {
  /** Resolves when what completed before survives a crash as far as the log is concerned. */
  settled(disk: ActiveDisk): MaybePromise<void>
}

export class ActiveDisk implements BlockDevice {
  readonly name: string
  readonly #image: BlockDevice
  readonly #layers: DiskLayers
  readonly #group: ActiveContext
  /** Each ends a request that waits for the image. */
  readonly #ends = new Set<() => void>()

  constructor(name: string, image: BlockDevice, layers: DiskLayers, group: ActiveContext) {
    this.name = name
    this.#image = image
    this.#layers = layers
    this.#group = group
  }

  get geometry(): Geometry {
    return this.#image.geometry
  }

  get can(): Capabilities {
    // FAST_ZERO and the image's extents say nothing about what lies in memory over the image.
    if (this.#layers.isBusy) return { ...this.#image.can, fastZero: false, status: false }
    return this.#image.can
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    return this.#layers.read(into, at)
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    return this.#lasting(flags, this.#layers.localWrite(from, at, flags))
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#lasting(flags, this.#layers.localZero(at, length, flags))
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#lasting(flags, this.#layers.localTrim(at, length, flags))
  }

  flush(): MaybePromise<void> {
    return this.#lasting(FUA, this.#layers.flush())
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    if (this.#layers.isBusy || !this.#image.can.status) return [{ at, length, kind: 'data' }]
    return this.#image.status(at, length)
  }

  cache(at: number, length: number): MaybePromise<void> {
    return this.#image.cache?.(at, length)
  }

  resize(size: number): Promise<void> {
    return this.#image.resize(size)
  }

  /** The group closes what is below. */
  close(): Promise<void> {
    return Promise.resolve()
  }

  /** The image fails and the server is being shut down: what waits for the image waits no longer. */
  giveUp(): void {
    for (const end of [...this.#ends]) end()
  }

  /** What is to last also waits for what could come back over it. */
  #lasting(flags: RequestFlags, work: MaybePromise<void>): MaybePromise<void> {
    if ((flags & FUA) === 0) return work
    return this.#impatient(then(work, () => this.#group.settled(this)))
  }

  #impatient(work: MaybePromise<void>): MaybePromise<void> {
    if (!isPromise(work)) return work
    return new Promise((resolve, reject) => {
      const end = (): void =>
        reject(new Fault('SHUTDOWN', 'the server is being shut down', { where: this.name }))
      this.#ends.add(end)
      work.then(resolve, reject).finally(() => this.#ends.delete(end))
    })
  }
}
