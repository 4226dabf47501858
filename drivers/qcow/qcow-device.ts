/**
 * A QCOW image of any version as a BlockDevice.
 *
 * Invariants:
 *  - An image that is opened and not changed is not written to. Before the first change, what the format demands of a
 *    program that changes it is made durable (prepare.ts).
 *  - After a contradiction was found in the image nothing more is written to it.
 */

import {
  FUA,
  type Capabilities,
  type Extent,
  type Geometry,
  type RequestFlags,
} from '../../core/block-device.ts'
import { assert } from '../../core/assert.ts'
import { isPromise, then, type MaybePromise } from '../../core/maybe-promise.ts'
import { MiB } from '../../core/units.ts'
import type { ImageLayer } from '../image-format.ts'
import { Clearer } from './clearer.ts'
import { ExtentReport } from './extent-report.ts'
import { prepareForChanges } from './preparation.ts'
import type { QcowImage } from './qcow-image.ts'
import { Reader } from './reader.ts'
import { resizeImage } from './resizing.ts'
import { Writer } from './writer.ts'

export class QcowDevice implements ImageLayer {
  geometry: Geometry
  readonly can: Capabilities
  readonly #image: QcowImage
  readonly #reader: Reader
  readonly #writer: Writer | undefined
  readonly #clearer: Clearer | undefined
  readonly #report: ExtentReport
  #prepared = false
  #preparing: Promise<void> | undefined
  #closed: Promise<void> | undefined
  #requests = 0
  #idle: (() => void) | undefined

  constructor(image: QcowImage) {
    this.#image = image
    this.#reader = new Reader(image)
    this.#report = new ExtentReport(image)
    const { metadata } = image
    if (metadata !== undefined) {
      this.#writer = new Writer(image, metadata, this.#reader)
      this.#clearer = new Clearer(image, metadata, this.#writer)
    }
    this.geometry = geometryOf(image)
    const writable = metadata !== undefined
    this.can = {
      flush: true,
      fua: true,
      trim: writable && image.unmap && image.qcow2 !== undefined,
      zero: writable,
      fastZero: writable && image.format.zeroFlag && !image.rawData,
      status: true,
      resize: writable && !image.rawData && image.qcow2 !== undefined,
      cache: false,
    }
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    this.#admit(at, into.length)
    return this.#count(this.#reader.read(into, at))
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    this.#admit(at, from.length)
    const writer = this.#writer
    assert(writer !== undefined, 'a read-only disk is not written to')
    if (this.#image.broken !== undefined) throw this.#image.broken
    if (!this.#prepared) return this.#count(this.prepare().then(() => this.write(from, at, flags)))
    const written = writer.write(from, at)
    if ((flags & FUA) === 0) return this.#count(written)
    return this.#count(then(written, () => this.flush()))
  }

  async zero(at: number, length: number, flags: RequestFlags): Promise<void> {
    this.#admit(at, length)
    await this.#change((clearer) => clearer.zero(at, length, flags))
    if ((flags & FUA) !== 0) await this.flush()
  }

  async trim(at: number, length: number, flags: RequestFlags): Promise<void> {
    this.#admit(at, length)
    await this.#change((clearer) => clearer.trim(at, length))
    if ((flags & FUA) !== 0) await this.flush()
  }

  flush(): MaybePromise<void> {
    const { metadata } = this.#image
    if (metadata === undefined) return undefined
    if (this.#image.broken !== undefined) throw this.#image.broken
    return this.#count(metadata.flush())
  }

  /** What this image itself holds: a `hole` shows the backing image. */
  held(at: number, length: number): MaybePromise<Extent[]> {
    this.#admit(at, length)
    return this.#count(this.#report.held(at, length))
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    this.#admit(at, length)
    return this.#count(this.#report.extents(at, length))
  }

  async resize(size: number): Promise<void> {
    await this.#change(async (clearer) => {
      const { metadata, qcow2 } = this.#image
      assert(metadata !== undefined && qcow2 !== undefined, 'this disk can be resized')
      await resizeImage(this.#image, qcow2, metadata, clearer, size)
      this.geometry = geometryOf(this.#image)
    })
  }

  close(): Promise<void> {
    this.#closed ??= this.#finish()
    return this.#closed
  }

  async #finish(): Promise<void> {
    while (this.#requests > 0) await new Promise<void>((resolve) => (this.#idle = resolve))
    const { backing, broken, data, file, metadata } = this.#image
    try {
      if (metadata !== undefined && this.#prepared && broken === undefined) {
        await metadata.settle()
        await file.fit()
        await file.flush()
      }
    } finally {
      await file.device.close()
      if (data !== file) await data.device.close()
      await backing?.close()
    }
  }

  #change(work: (clearer: Clearer) => Promise<void>): Promise<void> {
    const run = async (): Promise<void> => {
      assert(this.#clearer !== undefined, 'a read-only disk is not changed')
      if (this.#image.broken !== undefined) throw this.#image.broken
      if (!this.#prepared) await this.prepare()
      await work(this.#clearer)
    }
    return this.#counted(run())
  }

  /** Does to the image what must be done before it is changed. */
  prepare(): Promise<void> {
    this.#preparing ??= prepareForChanges(this.#image)
      .then(() => {
        this.#prepared = true
      })
      .finally(() => (this.#preparing = undefined))
    return this.#preparing
  }

  #count<T>(result: MaybePromise<T>): MaybePromise<T> {
    return isPromise(result) ? this.#counted(result) : result
  }

  #counted<T>(request: Promise<T>): Promise<T> {
    this.#requests += 1
    return request.finally(() => {
      this.#requests -= 1
      if (this.#requests === 0) this.#idle?.()
    })
  }

  #admit(at: number, length: number): void {
    assert(this.#closed === undefined, 'no request follows the close')
    assert(at >= 0 && at + length <= this.#image.size, 'a request lies within the disk')
  }
}

function geometryOf({ data, file, format, metadata, size }: QcowImage): Geometry {
  return {
    size,
    block: { min: 1, preferred: Math.min(format.layout.clusterSize, 1 * MiB), max: 32 * MiB },
    readOnly: metadata === undefined,
    rotational: file.device.geometry.rotational || data.device.geometry.rotational,
  }
}
