/**
 * A disk of a secondary as its guest sees it: with COLO the last checkpoint under the guest's own writes, with Remus
 * nothing. The layers do the work (ramdisk/disk-layers.ts).
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
import type { ChangeLog } from '../core/change-log.ts'
import { Fault } from '../core/fault.ts'
import { isPromise, type MaybePromise } from '../core/maybe-promise.ts'
import type { DiskLayers } from '../ramdisk/disk-layers.ts'
import type { PageMemory } from '../ramdisk/page-memory.ts'
import type { Reception } from './reception.ts'
import { sectorGeometry } from './sector-geometry.ts'

/** What a disk needs of its group. */
export interface SecondaryContext {
  /** Why the guest may not use a disk now, or undefined when it may. */
  objectionTo(name: string): Fault | undefined
  /** How often a disk became a mixture so far. */
  mixturesOf(name: string): number
  /** The server is being shut down: nobody waits any more. */
  readonly stopping: boolean
  readonly memory: PageMemory
  readonly reception: Pick<Reception, 'localLimit' | 'hasLocalRoom'>
}

export class SecondaryDisk implements BlockDevice {
  readonly name: string
  readonly layers: DiskLayers
  /** The last checkpoint that is in the image. */
  flushed = 0
  readonly #below: BlockDevice
  readonly #group: SecondaryContext
  /** Each looks again whether its request may go on. */
  readonly #waiting = new Set<() => void>()
  /** The disk of the replica's new role: what still waits here goes on there. */
  #successor: BlockDevice | undefined
  /** Grows whenever the replica begins to follow: mixtures are counted from there. */
  #life = 0

  constructor(name: string, below: BlockDevice, layers: DiskLayers, group: SecondaryContext) {
    this.name = name
    this.layers = layers
    this.#below = below
    this.#group = group
  }

  get geometry(): Geometry {
    return sectorGeometry(this.#below.geometry)
  }

  get can(): Capabilities {
    // FAST_ZERO and the image's extents say nothing about what lies in memory over the image.
    return { ...this.#below.can, fastZero: false, status: false, resize: false }
  }

  get changeLog(): ChangeLog | undefined {
    return this.#below.changeLog
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    this.#checkUse()
    const mixtures = this.#group.mixturesOf(this.name)
    const life = this.#life
    const reading = this.layers.read(into, at)
    if (!isPromise(reading)) return
    return reading.then(() => {
      // 17: meanwhile this may have become a mixture, of which nobody may see anything,
      this.#checkUse()
      // and may be whole again since: then what was read may still be of the mixture.
      if (this.#group.mixturesOf(this.name) !== mixtures || this.#life !== life)
        return (this.#successor ?? this).read(into, at)
    })
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    if (this.#successor !== undefined) return this.#successor.write(from, at, flags)
    this.#checkUse()
    if (this.#group.reception.hasLocalRoom(from.length))
      return this.layers.localWrite(from, at, flags)
    return this.#room(from.length).then(() => this.write(from, at, flags))
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    if (this.#successor !== undefined) return this.#successor.zero(at, length, flags)
    this.#checkUse()
    if (this.#group.reception.hasLocalRoom(0)) return this.layers.localZero(at, length, flags)
    return this.#room(0).then(() => this.zero(at, length, flags))
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    if (this.#successor !== undefined) return this.#successor.trim(at, length, flags)
    this.#checkUse()
    if (this.#group.reception.hasLocalRoom(0)) return this.layers.localTrim(at, length, flags)
    return this.#room(0).then(() => this.trim(at, length, flags))
  }

  flush(): MaybePromise<void> {
    this.#checkUse()
    return this.layers.flush()
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    return [{ at, length, kind: 'data' }]
  }

  stopWaiting(): void {
    this.#below.stopWaiting?.()
  }

  resize(): Promise<void> {
    return Promise.reject(
      new Fault('NOT_SUPPORTED', 'a replicated disk cannot be resized', { where: this.name }),
    )
  }

  close(): Promise<void> {
    return this.#below.close()
  }

  /** The replica becomes active: what comes and what waits goes to this disk, until the replica follows again. */
  yieldTo(successor: BlockDevice | undefined): void {
    this.#successor = successor
    if (successor === undefined) this.#life += 1
    this.wake()
  }

  #checkUse(): void {
    const objection = this.#group.objectionTo(this.name)
    if (objection !== undefined) throw objection
  }

  #room(bytes: number): Promise<void> {
    const { memory, reception } = this.#group
    if (bytes > reception.localLimit)
      throw new Fault(
        'NO_MEMORY',
        `a write of ${bytes} bytes is more than the secondary can hold`,
        {
          where: this.name,
          remedy: 'give its group a larger memory=',
        },
      )
    return new Promise((resolve, reject) => {
      const ask = (): void => {
        const { stopping } = this.#group
        const waits = !stopping && this.#successor === undefined && !reception.hasLocalRoom(bytes)
        if (waits) return memory.whenReleased(ask)
        this.#waiting.delete(ask)
        if (stopping)
          reject(new Fault('SHUTDOWN', 'the server is being shut down', { where: this.name }))
        else resolve()
      }
      this.#waiting.add(ask)
      ask()
    })
  }

  /** Has every request that waits for memory look again. */
  wake(): void {
    for (const ask of [...this.#waiting]) ask()
  }
}
