/**
 * A disk that another NBD server keeps.
 *
 * Invariants:
 *  - Changes that overlap take turns: one that is sent again after a lost connection never overwrites a later one that
 *    was acknowledged.
 *  - What was acknowledged and no flush has covered is kept, and what is left of it is sent again before anything else
 *    when a connection was lost: a flush that succeeds covers it whatever the server went through meanwhile.
 *  - What is kept stays within its limit: a change that finds no room waits for a flush.
 *  - Where the server cannot flush, nothing is kept: a lost connection after a change ends the use of the disk.
 */

import {
  FAST_ZERO,
  FUA,
  type BlockDevice,
  type Capabilities,
  type Extent,
  type Geometry,
  type RequestFlags,
} from '../../core/block-device.ts'
import { asFault, Fault } from '../../core/fault.ts'
import { isPromise } from '../../core/maybe-promise.ts'
import { RangeLock } from '../../core/range-lock.ts'
import { GiB } from '../../core/units.ts'
import type { NbdClient } from '../../nbd/client.ts'
import { capabilitiesOf, exportObjection, geometryOf } from './export-facts.ts'
import { ReplayLog, sizeOf, type Change } from './replay-log.ts'
import { restore } from './restore.ts'
import { ServerLink, type LinkOptions } from './server-link.ts'
import type { Session } from './session.ts'

export interface NbdDeviceOptions extends Omit<LinkOptions, 'restore' | 'connect'> {
  readonly readOnly: boolean
  /** Bytes that are kept of what no flush has covered. */
  readonly replayBytes: number
  /** A session with the same server. */
  open(signal: AbortSignal): Promise<Session>
}

/** Lengths are sent as 32-bit numbers. */
const LONGEST = 1 * GiB

interface Waiting {
  readonly bytes: number
  readonly admit: () => void
  readonly refuse: (fault: Fault) => void
}

export class NbdDevice implements BlockDevice {
  readonly geometry: Geometry
  readonly can: Capabilities
  readonly #options: NbdDeviceOptions
  readonly #link: ServerLink
  readonly #changing = new RangeLock()
  readonly #log: ReplayLog | undefined
  /** Room that changes under way will take of the log. */
  #reserved = 0
  #waiting: Waiting[] = []
  #makingRoom = false
  /** A flush of ours has failed, and nobody has been told. */
  #owed: Fault | undefined
  /** Something was changed that cannot be put back. */
  #unkept = false
  #closed: Promise<void> | undefined

  /** @throws Fault when there is no server, or no such export */
  static async open(options: NbdDeviceOptions): Promise<NbdDevice> {
    const session = await options.open(new AbortController().signal)
    const wrong = exportObjection(session.info)
    if (wrong === undefined) return new NbdDevice(session, options)
    session.abandon()
    throw new Fault('PROTOCOL', `the NBD server ${wrong}`, { where: options.where })
  }

  private constructor(session: Session, options: NbdDeviceOptions) {
    const { info } = session
    this.#options = options
    this.geometry = geometryOf(info, options.readOnly)
    this.can = capabilitiesOf(info, options.readOnly)
    this.#log = this.can.flush && !this.geometry.readOnly ? new ReplayLog() : undefined
    this.#link = new ServerLink(session, {
      ...options,
      connect: async (signal) => {
        const next = await options.open(signal)
        const wrong = exportObjection(next.info, info)
        if (wrong === undefined) return next
        next.abandon()
        throw new Fault('REFUSED', `the NBD server ${wrong}`, { where: options.where })
      },
      restore: (next) => this.#restore(next),
    })
  }

  get connected(): boolean {
    return this.#link.connected
  }

  /** Bytes kept of what no flush has covered. */
  get bytesKept(): number {
    return this.#log?.bytes ?? 0
  }

  read(into: Buffer, at: number): Promise<void> {
    return this.#link.submit((client) => client.read(into, at), this.#options.nowMs())
  }

  write(from: Buffer, at: number, flags: RequestFlags): Promise<void> {
    const durable = (flags & FUA) !== 0
    const change = { kind: 'write', at, length: from.length, bytes: from, durable } as const
    return this.#change(change, (client) => client.write(from, at, flags))
  }

  async zero(at: number, length: number, flags: RequestFlags): Promise<void> {
    const durable = (flags & FUA) !== 0
    const again = flags & ~(FUA | FAST_ZERO)
    for (const part of parts(at, length)) {
      const change = { kind: 'zero', ...part, flags: again, durable } as const
      await this.#change(change, (client) => client.zero(part.at, part.length, flags))
    }
  }

  async trim(at: number, length: number, flags: RequestFlags): Promise<void> {
    const durable = (flags & FUA) !== 0
    for (const part of parts(at, length)) {
      const change = { kind: 'trim', ...part, durable } as const
      await this.#change(change, (client) => client.trim(part.at, part.length, flags))
    }
  }

  flush(): Promise<void> {
    const owed = this.#owed
    this.#owed = undefined
    return owed === undefined ? this.#flush() : Promise.reject(owed)
  }

  status(at: number, length: number): Promise<Extent[]> {
    const part = Math.min(length, LONGEST)
    return this.#link.submit((client) => client.status(at, part), this.#options.nowMs())
  }

  resize(): Promise<void> {
    const remedy = 'resize it on its server, and attach again'
    return Promise.reject(
      new Fault('NOT_SUPPORTED', 'a disk of an NBD server has the size that it has there', {
        where: this.#options.where,
        remedy,
      }),
    )
  }

  stopWaiting(): void {
    this.#link.stopWaiting()
  }

  /** @throws Fault when what was acknowledged may not be on stable storage */
  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    this.stopWaiting()
    try {
      if (this.#owed !== undefined || this.bytesKept > 0) await this.flush()
    } catch (error) {
      const what = 'writes that were acknowledged may not be on stable storage'
      throw asFault(error, 'IO', what, { where: this.#options.where })
    } finally {
      await this.#link.close()
    }
  }

  /** One change: in its turn, with room to keep it, sent, and kept once it is acknowledged. */
  async #change(change: Change, send: (client: NbdClient) => Promise<void>): Promise<void> {
    const sinceMs = this.#options.nowMs()
    const lock = this.#changing.acquire(change.at, change.length)
    const ticket = isPromise(lock) ? await lock : lock
    const bytes = sizeOf(change)
    try {
      if (!this.#admits(bytes)) await this.#room(bytes)
      try {
        await this.#link.submit(send, sinceMs)
        if (this.#log !== undefined) this.#log.add(change)
        else if (!change.durable) this.#unkept = true
      } finally {
        this.#reserved -= bytes
      }
    } finally {
      this.#changing.release(ticket)
      this.#admitWaiting()
    }
    if (this.bytesKept > this.#options.replayBytes / 2) this.#makeRoom()
  }

  #admits(bytes: number): boolean {
    if (this.#waiting.length > 0 || !this.#fits(bytes)) return false
    this.#reserved += bytes
    return true
  }

  #fits(bytes: number): boolean {
    const taken = this.bytesKept + this.#reserved
    return this.#log === undefined || taken === 0 || taken + bytes <= this.#options.replayBytes
  }

  #room(bytes: number): Promise<void> {
    const room = new Promise<void>((admit, refuse) => this.#waiting.push({ bytes, admit, refuse }))
    this.#admitWaiting()
    return room
  }

  /** Lets in whom there is room for. Room comes from a flush, and from changes under way that end. */
  #admitWaiting(): void {
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      if (!this.#fits(first.bytes)) break
      this.#waiting.shift()
      this.#reserved += first.bytes
      first.admit()
    }
    if (this.#waiting.length > 0 && this.bytesKept > 0) this.#makeRoom()
  }

  #makeRoom(): void {
    if (this.#makingRoom) return
    this.#makingRoom = true
    this.#flush().then(
      () => {
        this.#makingRoom = false
        this.#admitWaiting()
      },
      (error: unknown) => this.#madeNoRoom(asFault(error, 'IO', 'the flush failed')),
    )
  }

  /** Whoever waits is refused. Nobody else knows: what the server said is owed to the next flush. */
  #madeNoRoom(fault: Fault): void {
    this.#makingRoom = false
    if (fault.code !== 'TIMEOUT' && fault.code !== 'SHUTDOWN') this.#owed = fault
    const waiting = this.#waiting
    this.#waiting = []
    for (const { refuse } of waiting) refuse(fault)
  }

  async #flush(): Promise<void> {
    const log = this.#log
    let mark = 0
    await this.#link.submit((client) => {
      mark = log?.mark ?? 0
      return client.flush()
    }, this.#options.nowMs())
    log?.forget(mark)
  }

  async #restore(session: Session): Promise<void> {
    if (this.#unkept) {
      throw new Fault('IO', 'it offers no flush, so nobody knows what it has lost', {
        where: this.#options.where,
      })
    }
    if (this.#log === undefined) return
    await restore(this.#log.changes, session, this.#options)
  }
}

/** A long range in pieces that one request can have. */
function* parts(at: number, length: number): Generator<{ at: number; length: number }> {
  for (let done = 0; done < length; done += LONGEST) {
    yield { at: at + done, length: Math.min(LONGEST, length - done) }
  }
}
