/**
 * The one place where requests are checked: the top of every pipeline.
 *
 * Invariants:
 *  - What reaches the device below lies within the disk, is within its size limits and aligned to its blocks, changes
 *    nothing on a read-only disk, and asks for nothing that the device cannot do.
 *  - Seen from above, any alignment is served. A write that covers only part of a block reads the block, changes it and
 *    writes it; whatever else would change the same block meanwhile waits (RangeLock).
 *  - After close() was called every request is refused; the device below is closed when the last one has finished, and
 *    told before to keep none of them waiting.
 *  - The size changes while no request is in flight.
 *  - An aligned request that the device below answers at once is answered at once, without an allocation.
 */

import {
  FAST_ZERO,
  FUA,
  type BlockDevice,
  type BlockMap,
  type BlockMaps,
  type Capabilities,
  type Extent,
  type Geometry,
  type RequestFlags,
} from '../core/block-device.ts'
import type { ChangeLog } from '../core/change-log.ts'
import { Fault } from '../core/fault.ts'
import { ensure, isPromise, then, type MaybePromise } from '../core/maybe-promise.ts'
import { RangeLock } from '../core/range-lock.ts'
import { formatSize, MiB } from '../core/units.ts'
import { BlockEdges } from './block-edges.ts'
import { RequestGate } from './request-gate.ts'

/** What zeroing sends to a device that cannot zero. */
const ZEROES = Buffer.from(new SharedArrayBuffer(1 * MiB))

/** What a request is called that ends beyond the end of the disk. */
type Beyond = 'INVALID' | 'NO_SPACE'

export class Guard implements BlockDevice {
  readonly #below: BlockDevice
  readonly #readOnly: boolean
  readonly #edges: BlockEdges
  readonly #changing = new RangeLock()
  #geometry: Geometry
  /** The geometry below that #geometry was made of. */
  #seen: Geometry
  readonly #can: Capabilities
  readonly maps: BlockMaps
  /** Shut while the size changes. */
  readonly #gate = new RequestGate()
  #closed: Promise<void> | undefined

  /** @param readOnly refuse changes even where the device below would allow them */
  constructor(below: BlockDevice, readOnly: boolean) {
    this.#below = below
    this.#readOnly = readOnly || below.geometry.readOnly
    this.#edges = new BlockEdges(below)
    this.#seen = below.geometry
    this.#geometry = this.#present(below.geometry)
    const { can } = below
    this.#can = {
      ...can,
      fua: can.fua || can.flush,
      trim: can.trim && !this.#readOnly,
      zero: !this.#readOnly,
      fastZero: can.zero && can.fastZero && !this.#readOnly,
      resize: can.resize && !this.#readOnly,
    }
    const maps = Object.entries(below.maps ?? {}) as [keyof BlockMaps, BlockMap][]
    this.maps = Object.fromEntries(maps.map(([name, map]) => [name, this.#guarded(map)]))
  }

  get geometry(): Geometry {
    const { geometry } = this.#below
    if (geometry !== this.#seen) {
      this.#seen = geometry
      this.#geometry = this.#present(geometry)
    }
    return this.#geometry
  }

  get can(): Capabilities {
    return this.#can
  }

  get changeLog(): ChangeLog | undefined {
    return this.#below.changeLog
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    if (this.#gate.shut !== undefined) return this.#gate.shut.then(() => this.read(into, at))
    const { size, block } = this.#below.geometry
    this.#admit(at, into.length, size, 'INVALID')
    if (into.length > block.max) throw tooLong(into.length, block.max)
    if (isAligned(at, into.length, size, block.min))
      return this.#gate.track(this.#below.read(into, at))
    return this.#gate.track(this.#edges.read(into, at))
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    if (this.#gate.shut !== undefined)
      return this.#gate.shut.then(() => this.write(from, at, flags))
    const { size, block } = this.#below.geometry
    this.#admitChange(at, from.length, size)
    if (from.length > block.max) throw tooLong(from.length, block.max)
    const passed = this.#durability(flags)
    if (passed === flags) return this.#gate.track(this.#change(from, at, passed, block.min, size))
    return this.#gate.track(
      then(this.#change(from, at, passed, block.min, size), () => this.#below.flush()),
    )
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    if (this.#gate.shut !== undefined)
      return this.#gate.shut.then(() => this.zero(at, length, flags))
    const { size, block } = this.#below.geometry
    this.#admitChange(at, length, size)
    if ((flags & FAST_ZERO) !== 0 && !this.#can.fastZero) {
      throw new Fault('NOT_SUPPORTED', 'this disk zeroes no faster than it writes', {
        remedy: 'write zeroes, or leave FAST_ZERO out',
      })
    }
    const passed = this.#durability(flags)
    const work = this.#locked(at, length, block.min, size, () => {
      if (!this.#below.can.zero) return this.#writeZeroes(at, length, passed)
      if (isAligned(at, length, size, block.min)) return this.#below.zero(at, length, passed)
      return this.#edges.zero(at, length, passed)
    })
    return this.#gate.track(passed === flags ? work : then(work, () => this.#below.flush()))
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    if (this.#gate.shut !== undefined)
      return this.#gate.shut.then(() => this.trim(at, length, flags))
    const { size, block } = this.#below.geometry
    // As the NBD protocol has it: what would need space beyond the end is NO_SPACE, a trim there is merely wrong.
    this.#admitChange(at, length, size, 'INVALID')
    if (!this.#can.trim) return undefined
    const passed = this.#durability(flags)
    // What is only part of a block keeps its content, which a trim allows.
    const start = Math.ceil(at / block.min) * block.min
    const end = at + length === size ? size : Math.floor((at + length) / block.min) * block.min
    if (start >= end) return undefined
    const work = this.#locked(start, end - start, block.min, size, () =>
      this.#below.trim(start, end - start, passed),
    )
    return this.#gate.track(passed === flags ? work : then(work, () => this.#below.flush()))
  }

  flush(): MaybePromise<void> {
    if (this.#gate.shut !== undefined) return this.#gate.shut.then(() => this.flush())
    this.#refuseAfterClose()
    if (!this.#can.flush) throw notDurable()
    return this.#gate.track(this.#below.flush())
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    if (this.#gate.shut !== undefined) return this.#gate.shut.then(() => this.status(at, length))
    const { size, block } = this.#below.geometry
    this.#admit(at, length, size, 'INVALID')
    if (!this.#can.status) return [{ at, length, kind: 'data' }]
    if (isAligned(at, length, size, block.min))
      return this.#gate.track(this.#below.status(at, length))
    return this.#gate.track(this.#edges.status(at, length))
  }

  cache(at: number, length: number): MaybePromise<void> {
    if (this.#gate.shut !== undefined) return this.#gate.shut.then(() => this.cache(at, length))
    const { size, block } = this.#below.geometry
    this.#admit(at, length, size, 'INVALID')
    if (!this.#can.cache) throw new Fault('NOT_SUPPORTED', 'this disk has nothing to read ahead of')
    const start = Math.floor(at / block.min) * block.min
    const end = Math.min(Math.ceil((at + length) / block.min) * block.min, size)
    return this.#gate.track(this.#below.cache?.(start, end - start))
  }

  async resize(size: number): Promise<void> {
    this.#refuseAfterClose()
    if (this.#readOnly) throw readOnlyFault()
    if (!this.#can.resize) {
      throw new Fault('NOT_SUPPORTED', 'this disk cannot be resized', {
        remedy: 'create a new image of the size you want, and copy',
      })
    }
    if (!Number.isSafeInteger(size) || size <= 0) {
      throw new Fault('INVALID', `a disk cannot have a size of ${size} bytes`, {
        remedy: 'give a positive whole number of bytes',
      })
    }
    await this.#gate.alone(() => this.#below.resize(size))
  }

  stopWaiting(): void {
    this.#below.stopWaiting?.()
  }

  close(): Promise<void> {
    this.#closed ??= this.#finish()
    return this.#closed
  }

  #guarded(map: BlockMap): BlockMap {
    const guarded: BlockMap = (at, length) => {
      if (this.#gate.shut !== undefined) return this.#gate.shut.then(() => guarded(at, length))
      this.#admit(at, length, this.#below.geometry.size, 'INVALID')
      return this.#gate.track(map(at, length))
    }
    return guarded
  }

  async #finish(): Promise<void> {
    this.stopWaiting()
    await this.#gate.quiet()
    await this.#below.close()
  }

  #present(below: Geometry): Geometry {
    const { preferred, max, min } = below.block
    return {
      ...below,
      block: { min: 1, preferred: Math.max(preferred, min), max },
      readOnly: this.#readOnly,
    }
  }

  #change(
    from: Buffer,
    at: number,
    flags: RequestFlags,
    min: number,
    size: number,
  ): MaybePromise<void> {
    if (min === 1) return this.#below.write(from, at, flags)
    return this.#locked(at, from.length, min, size, () =>
      isAligned(at, from.length, size, min)
        ? this.#below.write(from, at, flags)
        : this.#edges.write(from, at, flags),
    )
  }

  /** Runs a change alone in all blocks that it touches. Where every alignment is served, nothing needs to wait. */
  #locked(
    at: number,
    length: number,
    min: number,
    size: number,
    work: () => MaybePromise<void>,
  ): MaybePromise<void> {
    if (min === 1) return work()
    const start = Math.floor(at / min) * min
    const end = Math.min(Math.ceil((at + length) / min) * min, size)
    return then(this.#changing.acquire(start, end - start), (ticket) =>
      ensure(work, () => this.#changing.release(ticket)),
    )
  }

  #writeZeroes(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const { size, block } = this.#below.geometry
    const chunk = Math.floor(Math.min(ZEROES.length, block.max) / block.min) * block.min
    const step = (done: number): MaybePromise<void> => {
      let position = done
      while (position < length) {
        // The first chunk ends at a multiple of the chunk size, so that all but the edges are aligned.
        const part = Math.min(chunk - ((at + position) % chunk), length - position)
        const bytes = ZEROES.subarray(0, part)
        const here = at + position
        position += part
        const written = isAligned(here, part, size, block.min)
          ? this.#below.write(bytes, here, flags & FUA)
          : this.#edges.write(bytes, here, flags & FUA)
        if (isPromise(written)) {
          const next = position
          return written.then(() => step(next))
        }
      }
      return undefined
    }
    return step(0)
  }

  /** The flags to pass on; without FUA where a flush afterwards has to do its work. */
  #durability(flags: RequestFlags): RequestFlags {
    if ((flags & FUA) === 0 || this.#below.can.fua) return flags
    if (!this.#can.flush) throw notDurable()
    return flags & ~FUA
  }

  #admitChange(at: number, length: number, size: number, beyond: Beyond = 'NO_SPACE'): void {
    if (this.#readOnly) throw readOnlyFault()
    this.#admit(at, length, size, beyond)
  }

  #admit(at: number, length: number, size: number, beyond: Beyond): void {
    this.#refuseAfterClose()
    if (!Number.isSafeInteger(at) || at < 0) {
      throw new Fault('INVALID', `not an offset on a disk: ${at}`)
    }
    if (!Number.isSafeInteger(length) || length <= 0) {
      throw new Fault('INVALID', `not a length of a request: ${length}`, {
        where: `offset ${at}`,
      })
    }
    if (at + length > size) {
      throw new Fault(beyond, `the request ends beyond the end of the disk (${size} bytes)`, {
        where: `offset ${at}, ${length} bytes`,
      })
    }
  }

  #refuseAfterClose(): void {
    if (this.#closed !== undefined) throw new Fault('SHUTDOWN', 'the disk is being closed')
  }
}

/** Whether both ends of a range lie on block boundaries, or at the end of the disk. */
function isAligned(at: number, length: number, size: number, min: number): boolean {
  return min === 1 || (at % min === 0 && ((at + length) % min === 0 || at + length === size))
}

function tooLong(length: number, max: number): Fault {
  return new Fault('INVALID', `the request of ${formatSize(length)} is too long`, {
    remedy: `ask for at most ${formatSize(max)} at a time`,
  })
}

function readOnlyFault(): Fault {
  return new Fault('NOT_PERMITTED', 'the disk is read-only')
}

function notDurable(): Fault {
  return new Fault('NOT_SUPPORTED', 'this disk cannot make anything durable')
}
