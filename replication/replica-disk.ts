/** A replicated disk as its export has it, whatever role the replica has: each request goes to the present role's disk. */

import type {
  BlockDevice,
  Capabilities,
  Extent,
  Geometry,
  RequestFlags,
} from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'

export class ReplicaDisk implements BlockDevice {
  readonly name: string
  readonly #close: () => Promise<void>
  #device: BlockDevice

  constructor(name: string, device: BlockDevice, close: () => Promise<void>) {
    this.name = name
    this.#device = device
    this.#close = close
  }

  /** The replica has changed its role; requests that are under way end where they began. */
  use(device: BlockDevice): void {
    this.#device = device
  }

  get geometry(): Geometry {
    return this.#device.geometry
  }

  get can(): Capabilities {
    return this.#device.can
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

  resize(): Promise<void> {
    return Promise.reject(
      new Fault('NOT_SUPPORTED', 'a replicated disk cannot be resized', { where: this.name }),
    )
  }

  close(): Promise<void> {
    return this.#close()
  }
}
