/**
 * A layer that changes nothing. Each layer extends it by what it does change, and by nothing else.
 *
 * Invariant: the device below is this layer's alone; closing the layer closes it.
 */

import type {
  BlockDevice,
  BlockMaps,
  Capabilities,
  Extent,
  Geometry,
  RequestFlags,
} from './block-device.ts'
import type { ChangeLog } from './change-log.ts'
import type { MaybePromise } from './maybe-promise.ts'

export abstract class Layer implements BlockDevice {
  protected readonly below: BlockDevice

  constructor(below: BlockDevice) {
    this.below = below
  }

  get geometry(): Geometry {
    return this.below.geometry
  }

  get can(): Capabilities {
    return this.below.can
  }

  get changeLog(): ChangeLog | undefined {
    return this.below.changeLog
  }

  get maps(): BlockMaps | undefined {
    return this.below.maps
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    return this.below.read(into, at)
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    return this.below.write(from, at, flags)
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.below.zero(at, length, flags)
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.below.trim(at, length, flags)
  }

  flush(): MaybePromise<void> {
    return this.below.flush()
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    return this.below.status(at, length)
  }

  cache(at: number, length: number): MaybePromise<void> {
    return this.below.cache?.(at, length)
  }

  resize(size: number): Promise<void> {
    return this.below.resize(size)
  }

  stopWaiting(): void {
    this.below.stopWaiting?.()
  }

  close(): Promise<void> {
    return this.below.close()
  }
}
