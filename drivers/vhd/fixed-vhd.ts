/**
 * A fixed VHD: the disk byte for byte, and a footer behind it.
 *
 * Invariant: at every moment the file ends with a whole footer that tells the size of a disk that is all there.
 */

import type { Capabilities, Extent, Geometry, RequestFlags } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'
import { SECTOR } from '../../core/units.ts'
import { footerBytes, type Footer } from '../../formats/vhd/footer.ts'
import { resizedFooter } from '../../formats/vhd/resize.ts'
import type { ImageFile } from '../aio/aio-device.ts'
import type { ImageLayer } from '../image-format.ts'

export class FixedVhd implements ImageLayer {
  geometry: Geometry
  readonly can: Capabilities
  readonly path: string
  footer: Footer
  #footerAt: number
  readonly #file: ImageFile

  constructor(file: ImageFile, path: string, footer: Footer, footerAt: number) {
    this.path = path
    this.footer = footer
    this.#footerAt = footerAt
    this.#file = file
    this.can = file.can
    this.geometry = { ...file.geometry, size: footer.currentSize }
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    return this.#file.read(into, at)
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    return this.#file.write(from, at, flags)
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#file.zero(at, length, flags)
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#file.trim(at, length, flags)
  }

  flush(): MaybePromise<void> {
    return this.#file.flush()
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    return this.#file.status(at, length)
  }

  held(at: number, length: number): Extent[] {
    return [{ at, length, kind: 'data' }]
  }

  /** The new footer comes with the new end of the file, and is durable before the old one becomes a part of the disk. */
  async resize(size: number): Promise<void> {
    const footer = resizedFooter(this.footer, size)
    if (size === this.geometry.size) return
    const old = this.#footerAt
    if (size < old + SECTOR) {
      throw new Fault('NOT_SUPPORTED', 'a fixed VHD grows by a sector at least', {
        where: this.path,
      })
    }
    if (this.#file.geometry.size !== old + SECTOR) {
      throw new Fault('IO', 'an earlier resize has failed half-way', {
        where: this.path,
        remedy: 'open the image anew',
      })
    }
    await this.#file.extend(footerBytes(footer), size)
    await this.#file.flush()
    await this.#file.zero(old, SECTOR, 0)
    await this.#file.flush()
    this.footer = footer
    this.#footerAt = size
    this.geometry = { ...this.geometry, size }
  }

  close(): Promise<void> {
    return this.#file.close()
  }
}
