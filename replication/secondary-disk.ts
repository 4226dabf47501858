/**
 * A disk of a secondary as its guest sees it: with COLO the last checkpoint under the guest's own writes, with Remus
 * nothing until it is promoted, afterwards the active disk. The layers do the work (ramdisk/disk-layers.ts).
 *
 * Invariants:
 *  - 6, 11 Reads never see what the primary sent since the last checkpoint.
 *  - No request is refused or retried because of a checkpoint, a promote or a flush; one that needs memory waits for it.
 */

import type {
  BlockDevice,
  Capabilities,
  Extent,
  Geometry,
  RequestFlags,
} from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'
import { SECTOR } from '../core/units.ts'
import type { DiskLayers } from '../ramdisk/disk-layers.ts'
import type { PageMemory } from '../ramdisk/page-memory.ts'

/** What a disk needs of its group. */
export interface SecondaryContext {
  /** Why the guest may not use the disk now, or undefined when it may. */
  readonly useObjection: string | undefined
  readonly active: boolean
  readonly memory: PageMemory
  detach(): Promise<void>
}

export class SecondaryDisk implements BlockDevice {
  readonly name: string
  readonly layers: DiskLayers
  readonly #below: BlockDevice
  readonly #group: SecondaryContext

  constructor(name: string, below: BlockDevice, layers: DiskLayers, group: SecondaryContext) {
    this.name = name
    this.layers = layers
    this.#below = below
    this.#group = group
  }

  get geometry(): Geometry {
    const { block, ...geometry } = this.#below.geometry
    return {
      ...geometry,
      block: {
        ...block,
        min: Math.max(block.min, SECTOR),
        preferred: Math.max(block.preferred, SECTOR),
      },
    }
  }

  get can(): Capabilities {
    // FAST_ZERO and the image's extents say nothing about what lies in memory over the image.
    return { ...this.#below.can, fastZero: false, status: false, resize: false }
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    this.#checkUse()
    return this.layers.read(into, at)
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    this.#checkUse()
    if (this.#hasRoom(from.length)) return this.layers.localWrite(from, at, flags)
    return this.#room(from.length).then(() => this.write(from, at, flags))
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    this.#checkUse()
    if (this.#hasRoom(0)) return this.layers.localZero(at, length, flags)
    return this.#room(0).then(() => this.zero(at, length, flags))
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    this.#checkUse()
    if (this.#hasRoom(0)) return this.layers.localTrim(at, length, flags)
    return this.#room(0).then(() => this.trim(at, length, flags))
  }

  flush(): MaybePromise<void> {
    this.#checkUse()
    return this.layers.flush()
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    return [{ at, length, kind: 'data' }]
  }

  resize(): Promise<void> {
    return Promise.reject(
      new Fault('NOT_SUPPORTED', 'a replicated disk cannot be resized', { where: this.name }),
    )
  }

  async close(): Promise<void> {
    await this.#group.detach()
    await this.#below.close()
  }

  #checkUse(): void {
    const objection = this.#group.useObjection
    if (objection !== undefined) throw new Fault('NOT_PERMITTED', objection, { where: this.name })
  }

  /** An active disk writes to its image; before that a write lives in memory. */
  #hasRoom(bytes: number): boolean {
    return this.#group.active || this.#group.memory.canHold(bytes)
  }

  #room(bytes: number): Promise<void> {
    return new Promise((resolve) => {
      const ask = (): void => {
        if (this.#hasRoom(bytes)) resolve()
        else this.#group.memory.whenReleased(ask)
      }
      ask()
    })
  }
}
