/**
 * What an I/O thread does with an image: blocking system calls, repeated until a request is done or has failed.
 *
 * Invariants:
 *  - A transfer either moves every byte or reports why not and where it stopped; zeroes are never made up.
 *  - With O_DIRECT, the system sees only memory, offsets and lengths that are multiples of the alignment.
 */

import * as fs from 'node:fs'

import { FAST_ZERO, NO_HOLE } from '../../core/block-device.ts'
import { MiB } from '../../core/units.ts'
import {
  errno,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  SEEK_DATA,
  SEEK_HOLE,
  type Native,
} from './native.ts'
import { ENDED_EARLY } from './ring.ts'

/** What the threads must know about an open image. */
export interface ImageDescription {
  readonly fd: number
  /** O_DIRECT's alignment of memory, offset and length in bytes; 0 where the page cache serves. */
  readonly directAlignment: number
  /** A block device's logical block size in bytes; 0 for a file. */
  readonly logicalBlock: number
  /** Whether zero() may give space back. */
  readonly punch: boolean
}

const BOUNCE = 1 * MiB
const EINTR = -errno('EINTR')
const ENXIO = -errno('ENXIO')
const EIO = -errno('EIO')
const UNSUPPORTED = -errno('EOPNOTSUPP')
/** The ways in which file systems and devices say that they cannot do this fallocate. */
const REFUSALS: readonly number[] = [
  UNSUPPORTED,
  -errno('ENOSYS'),
  -errno('ENODEV'),
  -errno('EINVAL'),
]

export class ImageIo {
  /** Byte offset where the last request stopped. */
  stoppedAt = 0
  readonly #image: ImageDescription
  readonly #native: Native | undefined
  #bounceBuffer: Buffer | undefined
  #zeroBuffer: Buffer | undefined

  constructor(image: ImageDescription, native: Native | undefined) {
    this.#image = image
    this.#native = native
  }

  /** Transfers between the image and memory given by address. Native only. */
  transfer(native: Native, write: boolean, address: number, length: number, at: number): number {
    const alignment = this.#image.directAlignment
    if (alignment !== 0 && address % alignment !== 0) {
      return this.#transferBounced(native, write, address, length, at)
    }
    return this.#repeat(write, length, at, (done) =>
      write
        ? native.write(this.#image.fd, address + done, length - done, at + done)
        : native.read(this.#image.fd, address + done, length - done, at + done),
    )
  }

  /** The same for memory that is at hand as an object. */
  transferBuffer(write: boolean, bytes: Uint8Array, at: number): number {
    const { fd } = this.#image
    return this.#repeat(write, bytes.length, at, (done) =>
      attempt(() =>
        write
          ? fs.writeSync(fd, bytes, done, bytes.length - done, at + done)
          : fs.readSync(fd, bytes, done, bytes.length - done, at + done),
      ),
    )
  }

  sync(): number {
    return attempt(() => {
      fs.fdatasyncSync(this.#image.fd)
      return 0
    })
  }

  resize(size: number): number {
    return attempt(() => {
      fs.ftruncateSync(this.#image.fd, size)
      return 0
    })
  }

  /** Makes the range read as zeroes by the cheapest means that the flags and the file system allow. */
  zero(at: number, length: number, flags: number): number {
    this.stoppedAt = at
    const mayPunch = this.#image.punch && (flags & NO_HOLE) === 0
    const fast = (flags & FAST_ZERO) !== 0
    const { logicalBlock } = this.#image
    if (logicalBlock === 0 || (at % logicalBlock === 0 && length % logicalBlock === 0)) {
      let result = UNSUPPORTED
      if (mayPunch) result = this.#allocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, at, length)
      // A block device's ZERO_RANGE falls back to writing within the kernel: right, but not fast.
      if (result === UNSUPPORTED && !(fast && logicalBlock !== 0)) {
        result = this.#allocate(FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, at, length)
      }
      if (result !== UNSUPPORTED) return result
    }
    return fast ? UNSUPPORTED : this.#writeZeroes(at, length)
  }

  /** Gives the range's space back where that is possible; ragged ends of a block device's blocks stay. */
  trim(at: number, length: number): number {
    this.stoppedAt = at
    const block = this.#image.logicalBlock
    if (block === 0) return this.#allocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, at, length)
    const start = Math.ceil(at / block) * block
    const end = Math.floor((at + length) / block) * block
    if (start >= end || this.#native === undefined) return 0
    return this.#native.discard(this.#image.fd, start, end - start)
  }

  /** Whether holes can be punched, asked beyond the end of the file, where there is nothing to lose. */
  probePunch(size: number): number {
    const beyond = (Math.ceil(size / MiB) + 1) * MiB
    return this.#allocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, beyond, MiB)
  }

  /**
   * Fills `found` with the lengths of the extents from `at`: positive for data, negative for holes.
   * Returns their number, or a negated errno.
   */
  extents(native: Native, found: Float64Array, at: number, length: number): number {
    const { fd } = this.#image
    const end = at + length
    let position = at
    let count = 0
    while (position < end && count + 2 <= found.length) {
      this.stoppedAt = position
      let data = native.seek(fd, position, SEEK_DATA)
      if (data === ENXIO) data = end // no data up to the end of the file
      if (data < 0) return data
      data = Math.min(data, end)
      if (data > position) {
        found[count++] = position - data
        position = data
        continue
      }
      const hole = native.seek(fd, position, SEEK_HOLE)
      if (hole < 0) return hole
      // No progress means that the file changed between the calls; calling the rest data is always true enough.
      const stop = hole > position ? Math.min(hole, end) : end
      found[count++] = stop - position
      position = stop
    }
    return count
  }

  /** Runs `step(done)` until `length` bytes are done; short transfers are continued. */
  #repeat(write: boolean, length: number, at: number, step: (done: number) => number): number {
    let done = 0
    while (done < length) {
      const moved = step(done)
      if (moved > 0) {
        done += moved
        continue
      }
      if (moved === EINTR) continue
      this.stoppedAt = at + done
      if (moved < 0) return moved
      return write ? EIO : ENDED_EARLY
    }
    return length
  }

  #transferBounced(
    native: Native,
    write: boolean,
    address: number,
    length: number,
    at: number,
  ): number {
    this.#bounceBuffer ??= alignedBuffer(native, BOUNCE, this.#image.directAlignment)
    const bounce = native.address(this.#bounceBuffer)
    for (let done = 0; done < length; done += BOUNCE) {
      const part = Math.min(BOUNCE, length - done)
      if (write) native.copy(bounce, address + done, part)
      const moved = this.transfer(native, write, bounce, part, at + done)
      if (moved < 0) return moved
      if (!write) native.copy(address + done, bounce, part)
    }
    return length
  }

  #allocate(mode: number, at: number, length: number): number {
    if (this.#native === undefined) return UNSUPPORTED
    let result: number
    do result = this.#native.fallocate(this.#image.fd, mode, at, length)
    while (result === EINTR)
    return REFUSALS.includes(result) ? UNSUPPORTED : result
  }

  #writeZeroes(at: number, length: number): number {
    const alignment = this.#image.directAlignment
    this.#zeroBuffer ??=
      this.#native === undefined
        ? Buffer.alloc(BOUNCE)
        : alignedBuffer(this.#native, BOUNCE, Math.max(alignment, 1))
    for (let done = 0; done < length; done += BOUNCE) {
      const part = this.#zeroBuffer.subarray(0, Math.min(BOUNCE, length - done))
      const moved = this.transferBuffer(true, part, at + done)
      if (moved < 0) return moved
    }
    return 0
  }
}

/** Zeroed memory whose address is a multiple of `alignment`. */
function alignedBuffer(native: Native, length: number, alignment: number): Buffer {
  const memory = Buffer.from(new ArrayBuffer(length + alignment))
  const excess = native.address(memory) % alignment
  const start = excess === 0 ? 0 : alignment - excess
  return memory.subarray(start, start + length)
}

/** The call's result, or the negated errno of the error that it throws. */
function attempt(call: () => number): number {
  try {
    return call()
  } catch (error) {
    const number = (error as NodeJS.ErrnoException).errno
    if (number === undefined) throw error
    return number
  }
}
