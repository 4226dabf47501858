/**
 * A file or block device as a BlockDevice.
 *
 * Invariants:
 *  - No call that may wait for a disk is made on the main thread: there, the page cache serves a request at once
 *    (RWF_NOWAIT) or the I/O threads of this disk do.
 *  - A flush that succeeded covers every request completed before it was issued. Once the system has reported a lost
 *    write-back, every later flush fails until the image is opened anew: the kernel reports such a loss only once.
 *  - A flush in progress is never joined by a request that completed after it began; concurrent flushes share the next.
 */

import { assert } from '../../core/assert.ts'
import {
  FAST_ZERO,
  FUA,
  type BlockDevice,
  type Capabilities,
  type Extent,
  type Geometry,
  type RequestFlags,
} from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { KiB, MiB } from '../../core/units.ts'
import type { OpenImage } from './image-file.ts'
import { systemFault } from './io-fault.ts'
import { IoThreads, type IoRequest } from './io-threads.ts'
import { errno, type Native } from './native.ts'
import {
  ENDED_EARLY,
  EXTENTS,
  PROBE_PUNCH,
  READ,
  READ_AHEAD,
  RESIZE,
  SYNC,
  THREAD_LOST,
  TRIM,
  WRITE,
  ZERO,
  type Operation,
} from './ring.ts'

/** Larger transfers keep the main thread too long even where the page cache has everything. */
const INLINE_LIMIT = 256 * KiB
const EXTENTS_PER_CALL = 1024
const EOPNOTSUPP = -errno('EOPNOTSUPP')

export interface AioOptions {
  readonly path: string
  readonly native: Native | undefined
  readonly logger: Logger
  /** Whether trim and zero may give space back. */
  readonly unmap: boolean
  /** Most I/O threads. */
  readonly threads: number
}

/** How a request ended: a result as ring.ts defines it, and the byte offset where it stopped. */
interface Outcome {
  readonly result: number
  readonly stoppedAt: number
}

/** A file or device as the home of an image that has a structure of its own, and may have to grow for it. */
export interface ImageFile extends BlockDevice {
  /**
   * Makes the file longer: it ends with these bytes afterwards, and what is between them and its old end reads as
   * zeroes. One system call, so that no moment shows the new size without them.
   */
  extend(last: Buffer, at: number): Promise<void>
}

export class AioDevice implements ImageFile {
  geometry: Geometry
  readonly can: Capabilities
  readonly #image: OpenImage
  readonly #fd: number
  readonly #options: AioOptions
  readonly #native: Native | undefined
  readonly #threads: IoThreads
  #inlineReads: boolean
  #inlineWrites: boolean
  /** Whether something completed since the last flush began. */
  #unsynced = true
  #lostWrites: Fault | undefined
  #syncing: Promise<void> | undefined
  #nextSync: Promise<void> | undefined
  #requests = 0
  #idle: (() => void) | undefined
  #closed: Promise<void> | undefined

  private constructor(image: OpenImage, options: AioOptions) {
    this.#image = image
    this.#fd = image.handle.fd
    this.#options = options
    this.#native = options.native
    this.#inlineReads = options.native !== undefined && image.directAlignment === 0
    this.#inlineWrites = this.#inlineReads
    this.geometry = geometryOf(image, image.size)
    this.can = { ...NOTHING }
    this.#threads = new IoThreads(
      {
        fd: this.#fd,
        directAlignment: image.directAlignment,
        logicalBlock: image.logicalBlock,
        punch: options.unmap,
      },
      options.native,
      options.threads,
      (error) => options.logger.error({ err: error, path: options.path }, 'an I/O thread is lost'),
    )
  }

  /** Takes over the open image: close() closes it, and so does a failure here. */
  static async over(image: OpenImage, options: AioOptions): Promise<AioDevice> {
    const device = new AioDevice(image, options)
    try {
      Object.assign(device.can, await device.#capabilities())
      return device
    } catch (error) {
      await device.close()
      throw error
    }
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    this.#admit(at, into.length)
    const { length } = into
    if (this.#inlineReads && length <= INLINE_LIMIT) {
      assert(this.#native !== undefined, 'inline reads are native')
      const moved = this.#native.readNow(this.#fd, into, at)
      if (moved === length) return undefined
      if (moved === EOPNOTSUPP) this.#inlineReads = false
      if (moved > 0) return this.#transfer(READ, into.subarray(moved), at + moved, 0)
    }
    return this.#transfer(READ, into, at, 0)
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    this.#admit(at, from.length)
    const { length } = from
    if (this.#inlineWrites && length <= INLINE_LIMIT) {
      assert(this.#native !== undefined, 'inline writes are native')
      const moved = this.#native.writeNow(this.#fd, from, at)
      if (moved === EOPNOTSUPP) this.#inlineWrites = false
      if (moved > 0) this.#unsynced = true
      if (moved === length) return (flags & FUA) === 0 ? undefined : this.flush()
      if (moved > 0) return this.#transfer(WRITE, from.subarray(moved), at + moved, flags)
    }
    return this.#transfer(WRITE, from, at, flags)
  }

  async zero(at: number, length: number, flags: RequestFlags): Promise<void> {
    this.#admit(at, length)
    const { result, stoppedAt } = await this.#ask(ZERO, at, length, flags)
    if (result === EOPNOTSUPP && (flags & FAST_ZERO) !== 0) {
      throw new Fault('NOT_SUPPORTED', 'zeroes cannot be had faster than by writing them', {
        where: this.#place(at),
      })
    }
    this.#unsynced = true
    if (result < 0) throw this.#fault(result, `zero ${length} bytes`, stoppedAt)
    if ((flags & FUA) !== 0) await this.flush()
  }

  async trim(at: number, length: number, flags: RequestFlags): Promise<void> {
    this.#admit(at, length)
    if (this.can.trim) {
      const { result, stoppedAt } = await this.#ask(TRIM, at, length, flags)
      this.#unsynced = true
      // What the file system turns out not to trim stays as it is, which a trim allows.
      if (result < 0 && result !== EOPNOTSUPP) {
        throw this.#fault(result, `trim ${length} bytes`, stoppedAt)
      }
    }
    if ((flags & FUA) !== 0) await this.flush()
  }

  flush(): MaybePromise<void> {
    if (this.#lostWrites !== undefined) throw this.#lostWrites
    if (this.#image.readOnly) return undefined
    // The next one has not begun: it covers everything so far.
    if (this.#nextSync !== undefined) return this.#nextSync
    if (this.#syncing === undefined) return this.#unsynced ? this.#sync() : undefined
    if (!this.#unsynced) return this.#syncing
    this.#requests += 1
    this.#nextSync = this.#syncing.then(this.#followingSync, this.#followingSync)
    return this.#nextSync
  }

  async status(at: number, length: number): Promise<Extent[]> {
    this.#admit(at, length)
    const lengths = new Float64Array(new SharedArrayBuffer(8 * EXTENTS_PER_CALL))
    const { result, stoppedAt } = await this.#ask(
      EXTENTS,
      at,
      length,
      EXTENTS_PER_CALL,
      Buffer.from(lengths.buffer),
    )
    if (result < 0) throw this.#fault(result, 'find the holes', stoppedAt)
    const extents: Extent[] = []
    let position = at
    for (const signed of lengths.subarray(0, result)) {
      extents.push({ at: position, length: Math.abs(signed), kind: signed > 0 ? 'data' : 'hole' })
      position += Math.abs(signed)
    }
    return extents
  }

  async cache(at: number, length: number): Promise<void> {
    this.#admit(at, length)
    const { result } = await this.#ask(READ_AHEAD, at, length, 0)
    if (result < 0) throw this.#fault(result, 'read ahead', at)
  }

  async resize(size: number): Promise<void> {
    const { directAlignment } = this.#image
    if (!this.can.resize) {
      throw new Fault('NOT_SUPPORTED', 'this image cannot be resized', {
        where: this.#options.path,
        remedy: this.#image.readOnly ? 'open it for writing' : 'resize the block device itself',
      })
    }
    if (size <= 0 || (directAlignment !== 0 && size % directAlignment !== 0)) {
      throw new Fault('INVALID', `the image cannot have a size of ${size} bytes`, {
        where: this.#options.path,
        remedy: `give a positive multiple of ${Math.max(directAlignment, 1)}`,
      })
    }
    const { result } = await this.#ask(RESIZE, size, 0, 0)
    if (result < 0) throw this.#fault(result, `resize the image to ${size} bytes`, size)
    this.#unsynced = true
    this.geometry = geometryOf(this.#image, size)
  }

  async extend(last: Buffer, at: number): Promise<void> {
    const end = at + last.length
    assert(this.can.resize && at >= this.geometry.size, 'a file is extended behind its end')
    assert(this.#image.directAlignment === 0, 'what has a structure goes through the page cache')
    const { result, stoppedAt } = await this.#ask(WRITE, at, last.length, 0, last)
    this.#unsynced = true
    if (result < 0) throw this.#fault(result, `extend the image to ${end} bytes`, stoppedAt)
    this.geometry = geometryOf(this.#image, end)
  }

  close(): Promise<void> {
    this.#closed ??= this.#finish()
    return this.#closed
  }

  async #finish(): Promise<void> {
    while (this.#requests > 0) await new Promise<void>((resolve) => (this.#idle = resolve))
    await this.#threads.close()
    await this.#image.handle.close()
  }

  async #capabilities(): Promise<Capabilities> {
    const { readOnly, logicalBlock, discards, zeroesFast, directAlignment } = this.#image
    const file = logicalBlock === 0
    let punch = !file && zeroesFast
    if (file && this.#native !== undefined && !readOnly) {
      punch = (await this.#ask(PROBE_PUNCH, this.#image.size, 0, 0)).result >= 0
    }
    const native = this.#native !== undefined
    const { unmap } = this.#options
    return {
      flush: true,
      fua: true,
      trim: !readOnly && native && unmap && (file ? punch : discards),
      zero: !readOnly,
      fastZero: !readOnly && native && unmap && punch,
      status: native && file,
      resize: !readOnly && file,
      cache: native && directAlignment === 0,
    }
  }

  #transfer(
    operation: typeof READ | typeof WRITE,
    bytes: Buffer,
    at: number,
    flags: RequestFlags,
  ): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      const write = operation === WRITE
      const settle = (result: number, stoppedAt: number): void => {
        this.#leave()
        if (write) this.#unsynced = true
        if (result < 0) {
          const doing = `${write ? 'write' : 'read'} ${bytes.length} bytes`
          reject(this.#fault(result, doing, stoppedAt))
        } else if ((flags & FUA) === 0) resolve()
        else this.#flushFor(resolve, reject)
      }
      const slow = !write || this.#image.directAlignment !== 0
      this.#submit({ operation, at, length: bytes.length, flags, bytes, slow, settle })
    })
  }

  #flushFor(resolve: () => void, reject: (fault: unknown) => void): void {
    try {
      const flushed = this.flush()
      if (isPromise(flushed)) flushed.then(resolve, reject)
      else resolve()
    } catch (error) {
      reject(error)
    }
  }

  #sync(): Promise<void> {
    this.#unsynced = false
    this.#syncing = this.#ask(SYNC, 0, 0, 0).then(({ result }) => {
      this.#syncing = undefined
      if (result >= 0) return
      this.#lostWrites = this.#fault(result, 'flush: writes that were acknowledged may be lost', 0)
      throw this.#lostWrites
    })
    return this.#syncing
  }

  readonly #followingSync = (): Promise<void> => {
    this.#nextSync = undefined
    this.#leave()
    return this.#lostWrites === undefined ? this.#sync() : Promise.reject(this.#lostWrites)
  }

  #ask(
    operation: Operation,
    at: number,
    length: number,
    flags: number,
    bytes?: Buffer,
  ): Promise<Outcome> {
    return new Promise((resolve) => {
      const settle = (result: number, stoppedAt: number): void => {
        this.#leave()
        resolve({ result, stoppedAt })
      }
      this.#submit({ operation, at, length, flags, bytes, slow: true, settle })
    })
  }

  #submit(request: IoRequest): void {
    this.#requests += 1
    this.#threads.submit(request)
  }

  #leave(): void {
    this.#requests -= 1
    if (this.#requests === 0) this.#idle?.()
  }

  #admit(at: number, length: number): void {
    assert(this.#closed === undefined, 'no request follows the close')
    assert(at >= 0 && at + length <= this.geometry.size, 'a request lies within the disk')
  }

  #place(at: number): string {
    return `${this.#options.path} at byte ${at}`
  }

  #fault(result: number, doing: string, at: number): Fault {
    switch (result) {
      case ENDED_EARLY:
        return new Fault('IO', `cannot ${doing}: the image ends there; somebody truncated it`, {
          where: this.#place(at),
          remedy: 'restore the image, or its size',
        })
      case THREAD_LOST:
        return new Fault('IO', `cannot ${doing}: an I/O thread of this disk is lost`, {
          where: this.#place(at),
          remedy: 'open the disk anew; the log says why',
        })
      default:
        return systemFault(result, doing, this.#place(at))
    }
  }
}

const NOTHING: Capabilities = {
  flush: false,
  fua: false,
  trim: false,
  zero: false,
  fastZero: false,
  status: false,
  resize: false,
  cache: false,
}

function geometryOf(image: OpenImage, size: number): Geometry {
  const min = Math.max(image.directAlignment, 1)
  return {
    size,
    block: { min, preferred: Math.max(4 * KiB, min), max: 32 * MiB },
    readOnly: image.readOnly,
    rotational: image.rotational,
  }
}
