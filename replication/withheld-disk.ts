/** A disk of an active copy that no checkpoint had when it was promoted: what is in its image is no state of it. It serves nothing. */

import type { BlockDevice, Capabilities, Extent, Geometry } from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'

export class WithheldDisk implements BlockDevice {
  readonly #name: string
  readonly #image: BlockDevice

  constructor(name: string, image: BlockDevice) {
    this.#name = name
    this.#image = image
  }

  get geometry(): Geometry {
    return this.#image.geometry
  }

  get can(): Capabilities {
    return this.#image.can
  }

  read(): never {
    return this.#refuse()
  }

  write(): never {
    return this.#refuse()
  }

  zero(): never {
    return this.#refuse()
  }

  trim(): never {
    return this.#refuse()
  }

  flush(): never {
    return this.#refuse()
  }

  status(): Extent[] {
    return this.#refuse()
  }

  resize(): Promise<void> {
    return Promise.reject(withheld(this.#name))
  }

  /** The group closes what is below. */
  close(): Promise<void> {
    return Promise.resolve()
  }

  #refuse(): never {
    throw withheld(this.#name)
  }
}

export function withheld(name: string): Fault {
  return new Fault('NOT_PERMITTED', 'this disk is in no checkpoint yet: its copy is not whole', {
    where: name,
    remedy:
      'on a secondary, wait for the copy; on an active copy, remove the disk, and add it anew',
  })
}
