/**
 * A disk of a primary: writes the image below, then forwards what was written.
 *
 * Invariants:
 *  - 12 Overlapping writes take turns, and a write is forwarded before the next overlapping one begins: the secondary
 *       applies them in the order in which the image has them.
 *  - 5  A write is acknowledged only after the secondary has it as `ack` asks for, the kernel having its bytes being the
 *       least, or after the link is gone and the write is recorded as dirty.
 *  - 19 Trim is turned into zeroes on both sides, so that both read the same.
 *  - A write that failed here is never forwarded; what the image holds there is unknown, so protection ends loudly.
 */

import {
  FUA,
  type BlockDevice,
  type BlockMaps,
  type Capabilities,
  type Extent,
  type Geometry,
  type RequestFlags,
} from '../core/block-device.ts'
import type { ChangeLog } from '../core/change-log.ts'
import { Fault } from '../core/fault.ts'
import { isPromise, then, type MaybePromise } from '../core/maybe-promise.ts'
import { RangeLock, type RangeTicket } from '../core/range-lock.ts'
import { MiB } from '../core/units.ts'
import type { Forwarding } from './forwarding.ts'
import { dirtyExtents } from './machine/dirty-extents.ts'
import { frame, MAX_PAYLOAD, PUNCH, type Frame } from './machine/frame.ts'
import type { PrimaryMachine } from './machine/primary.ts'
import { sectorGeometry } from './sector-geometry.ts'

const ZEROES = Buffer.alloc(1 * MiB)

/** What a disk needs of its group. */
export interface PrimaryContext {
  readonly machine: PrimaryMachine
  /** The stream to the secondary; there is a link whenever the machine says that a write is to be forwarded. */
  readonly forwarding: Forwarding
  /** Whether the group has the disk of that number no longer. */
  isGone(index: number): boolean
  diskFailed(reason: string): void
  /** Resolves when a write may begin; at once while nothing has to be done before. @throws Fault when none may */
  ready(): MaybePromise<void>
  /** 14: resolves when a write that has ended may be acknowledged. @throws Fault when it never may */
  thawed(): MaybePromise<void>
}

export class PrimaryDisk implements BlockDevice {
  readonly name: string
  readonly maps: BlockMaps
  readonly #below: BlockDevice
  readonly #group: PrimaryContext
  readonly #index: number
  readonly #lock = new RangeLock()

  /** @param index the disk's number in the group */
  constructor(name: string, below: BlockDevice, group: PrimaryContext, index: number) {
    this.name = name
    this.#below = below
    this.#group = group
    this.#index = index
    this.maps = {
      ...below.maps,
      dirty: (at, length) =>
        dirtyExtents(at, length, (from, limit) =>
          group.machine.nextDirty(index, from, limit, group.machine.committed),
        ),
    }
  }

  /** By which the present link knows it; undefined while that does not carry it. */
  get number(): number | undefined {
    const { machine } = this.#group
    return machine.carries(this.#index) ? machine.numberOf(this.#index) : undefined
  }

  get geometry(): Geometry {
    return sectorGeometry(this.#below.geometry)
  }

  get can(): Capabilities {
    const can = this.#below.can
    return { ...can, trim: can.trim && can.zero, resize: false }
  }

  get changeLog(): ChangeLog | undefined {
    return this.#below.changeLog
  }

  read(into: Buffer, at: number): MaybePromise<void> {
    this.#group.machine.reading()
    return this.#below.read(into, at)
  }

  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    return this.#change(
      at,
      from.length,
      () => this.#below.write(from, at, flags),
      (last) => this.#forwardBytes(from, at, last),
    )
  }

  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#change(
      at,
      length,
      () => this.#below.zero(at, length, flags),
      (last) => this.#forwardZero(at, length, last),
    )
  }

  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.zero(at, length, flags & FUA)
  }

  /** What completed before, and was to be durable on the secondary, is durable on both sides then. */
  flush(): MaybePromise<void> {
    return then(this.#below.flush(), () => {
      const flushed = this.#group.forwarding.flushed()
      return isPromise(flushed) ? flushed.then(() => this.#group.thawed()) : undefined
    })
  }

  status(at: number, length: number): MaybePromise<Extent[]> {
    return this.#below.status(at, length)
  }

  cache(at: number, length: number): MaybePromise<void> {
    return this.#below.cache?.(at, length)
  }

  stopWaiting(): void {
    this.#below.stopWaiting?.()
  }

  /** Runs `work` while no write and no copy of the disk is under way. */
  async alone(work: () => Promise<void>): Promise<void> {
    const ticket = await this.#lock.acquire(0, this.geometry.size)
    try {
      await work()
    } finally {
      this.#lock.release(ticket)
    }
  }

  /**
   * The image has become larger by this range, which holds zeroes: sends them in the order of the guest's writes, or leaves them to the
   * next link. Nobody waits for an acknowledgement, nor, as whoever mends a pair may do it by this, for a frozen group.
   * @throws Fault when this side is leaving its role
   */
  async extend(at: number, length: number): Promise<void> {
    const { machine, forwarding } = this.#group
    while (!machine.frozen) {
      const ready = this.#group.ready()
      if (!isPromise(ready)) break
      await ready
    }
    const ticket = await this.#lock.acquire(at, length)
    try {
      this.#checkWritable()
      machine.writing(this.#index, at, length)
      if (machine.written(this.#index, at, length))
        this.#forwardZero(at, length, (data) => forwarding.sendWrite(data, () => undefined))
    } finally {
      this.#lock.release(ticket)
    }
  }

  resize(): Promise<void> {
    return Promise.reject(
      new Fault('NOT_SUPPORTED', 'a replicated disk cannot be resized', { where: this.name }),
    )
  }

  close(): Promise<void> {
    return this.#below.close()
  }

  /** Resolves when no write is under way any more; none may begin meanwhile. */
  async quiet(): Promise<void> {
    this.#lock.release(await this.#lock.acquire(0, this.geometry.size))
  }

  /** Fills `buffer` from `at`, and calls `captured` at the place in the order of the guest's writes where it was so. */
  async capture<T>(buffer: Buffer, at: number, captured: () => MaybePromise<T>): Promise<T> {
    const ticket = await this.#lock.acquire(at, buffer.length)
    try {
      await this.#below.read(buffer, at)
      return await captured()
    } finally {
      this.#lock.release(ticket)
    }
  }

  /**
   * Sends the present content of a range of at most 1 MiB, in order with the guest's writes, if it is still wanted. For resync.
   * @returns the bytes of data that went over the link
   */
  resend(at: number, buffer: Buffer, wanted: () => boolean): Promise<number> {
    return this.capture(buffer, at, () => {
      // The disk may have left the stream while it was read.
      if (!wanted() || this.number === undefined) return 0
      // Holes stay holes, and a discarded disk is not sent byte by byte.
      const empty = buffer.equals(ZEROES.subarray(0, buffer.length))
      return new Promise<number>((resolve) => {
        const last = (data: Frame): void =>
          this.#group.forwarding.sendCopy(data, () => resolve(empty ? 0 : buffer.length))
        if (empty) this.#forwardZero(at, buffer.length, last)
        else this.#forwardBytes(buffer, at, last)
      })
    })
  }

  #change(
    at: number,
    length: number,
    local: () => MaybePromise<void>,
    forward: (last: (data: Frame) => void) => void,
  ): MaybePromise<void> {
    const ready = this.#group.ready()
    if (isPromise(ready)) return ready.then(() => this.#change(at, length, local, forward))
    const ticket = this.#lock.acquire(at, length)
    if (isPromise(ticket))
      return ticket.then((granted) => this.#changeLocked(granted, at, length, local, forward))
    return this.#changeLocked(ticket, at, length, local, forward)
  }

  #changeLocked(
    ticket: RangeTicket,
    at: number,
    length: number,
    local: () => MaybePromise<void>,
    forward: (last: (data: Frame) => void) => void,
  ): MaybePromise<void> {
    const ready = this.#readyLocked(ticket)
    // Nobody waits with a lock in hand: who wants the disk to be quiet would wait for ever.
    if (isPromise(ready)) return ready.then(() => this.#change(at, length, local, forward))
    let written: MaybePromise<void>
    try {
      this.#checkWritable()
      this.#group.machine.writing(this.#index, at, length)
      written = local()
    } catch (error) {
      return this.#failed(ticket, at, length, error)
    }
    if (!isPromise(written)) return this.#changed(ticket, at, length, forward)
    return written.then(
      () => this.#changed(ticket, at, length, forward),
      (error: unknown) => this.#failed(ticket, at, length, error),
    )
  }

  #checkWritable(): void {
    // A write that waited while the disk has left its group: below it there is nothing that is tracked any more.
    if (this.#group.isGone(this.#index))
      throw new Fault('NOT_PERMITTED', 'this disk has been removed', { where: this.name })
    const objection = this.#group.machine.writeObjection
    if (objection !== undefined) {
      throw new Fault('NOT_PERMITTED', objection, {
        where: this.name,
        remedy: 'use the other side; stop the guest here, then demote this side',
      })
    }
  }

  #changed(
    ticket: RangeTicket,
    at: number,
    length: number,
    forward: (last: (data: Frame) => void) => void,
  ): MaybePromise<void> {
    const { machine, forwarding } = this.#group
    if (!machine.written(this.#index, at, length)) {
      this.#lock.release(ticket)
      if (!machine.needsAck) return this.#acknowledged()
      const covered = new Promise<void>((resolve) => {
        forwarding.strand(resolve)
      })
      return covered.then(() => this.#acknowledged())
    }
    const acknowledged = new Promise<void>((resolve) => {
      forward((data) => forwarding.sendWrite(data, resolve))
    })
    this.#lock.release(ticket)
    // The link may be gone by then, and with it the permission to complete.
    return acknowledged.then(() => this.#acknowledged())
  }

  #acknowledged(): MaybePromise<void> {
    const thawed = this.#group.thawed()
    // A write that was under way when this copy was deposed has changed the image, but is not acknowledged any more.
    if (!isPromise(thawed)) return this.#checkWritable()
    return thawed.then(() => this.#checkWritable())
  }

  #readyLocked(ticket: RangeTicket): MaybePromise<void> {
    let ready: MaybePromise<void>
    try {
      ready = this.#group.ready()
    } catch (error) {
      this.#lock.release(ticket)
      throw error
    }
    if (isPromise(ready)) this.#lock.release(ticket)
    return ready
  }

  #failed(ticket: RangeTicket, at: number, length: number, error: unknown): never {
    this.#lock.release(ticket)
    const refused =
      error instanceof Fault && (error.code === 'NOT_PERMITTED' || error.code === 'NOT_SUPPORTED')
    if (!refused) {
      this.#group.machine.writeFailed(this.#index, at, length)
      const why = error instanceof Error ? error.message : String(error)
      this.#group.diskFailed(`disk "${this.name}" failed to write ${length} bytes at ${at}: ${why}`)
    }
    throw error
  }

  /** @param last sends the last frame, whose hand-over covers the others: they leave in order */
  #forwardBytes(from: Buffer, at: number, last: (data: Frame) => void): void {
    const disk = this.#group.machine.numberOf(this.#index)
    for (let done = 0; done < from.length; done += MAX_PAYLOAD) {
      const payload =
        from.length <= MAX_PAYLOAD
          ? from
          : from.subarray(done, Math.min(from.length, done + MAX_PAYLOAD))
      const data = frame('write', { disk, position: at + done, payload })
      if (done + payload.length === from.length) last(data)
      else this.#group.forwarding.send(data)
    }
  }

  #forwardZero(at: number, length: number, last: (data: Frame) => void): void {
    const disk = this.#group.machine.numberOf(this.#index)
    last(frame('zero', { disk, position: at, extent: length, flags: PUNCH }))
  }
}
