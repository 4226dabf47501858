/**
 * One connection of the replication link: frames out in batches, frames in one by one. Decides nothing.
 *
 * Invariants:
 *  - Frames leave in the order of the send calls.
 *  - `handed` of a data frame is called exactly once: when the kernel has the bytes, or when the link is closed. Until
 *    then the payload's buffer belongs to the link.
 *  - `closed` is reported exactly once, and no frame after it.
 */

import type { Socket } from 'node:net'

import { Fault } from '../core/fault.ts'
import { KiB, MiB } from '../core/units.ts'
import { adoptSocket, SCRATCH, type Receiver, type TransportMode } from '../net/transport.ts'
import type { Link, LinkHandlers } from './environment.ts'
import { encodeHeader, HEADER_SIZE, type Frame } from './machine/frame.ts'
import { FrameReader } from './machine/frame-reader.ts'

/** Payloads up to this are copied next to their header: one large write beats two small ones. */
const COPY_LIMIT = 16 * KiB
const BATCH = 512 * KiB
/** Bytes read before everybody else on the event loop has had a turn: the journal's writes end there, and the heartbeats. */
const MOST_PER_TURN = 1 * MiB

/** What goes to the socket in one writev. */
interface Batch {
  readonly memory: Buffer
  used: number
  /** Start of the part of `memory` that is not in `chunks` yet. */
  from: number
  chunks: Buffer[]
  handed: (() => void)[]
}

export class SocketLink implements Link, Receiver {
  readonly peer: string
  readonly #socket: Socket
  readonly #handlers: LinkHandlers
  readonly #reader = new FrameReader()
  /** What is read into in place. */
  #room: Buffer | undefined
  #batch: Batch | undefined
  #spare: Buffer[] = []
  #underWay = new Set<Batch>()
  #closed = false
  #paused = false
  #sinceTurn = 0
  /** @returns whether the next frame may come */
  readonly #handle = (frame: Frame): boolean => {
    this.#handlers.frame(frame)
    return !this.#closed && !this.#paused
  }

  /** @param given the link's alone from now on; for reading in place it is paused, and was never read from */
  constructor(given: Socket, handlers: LinkHandlers, mode: TransportMode) {
    this.#handlers = handlers
    const socket = adoptSocket(given, this, mode)
    this.#socket = socket
    this.peer = `${socket.remoteAddress ?? 'unknown'}:${socket.remotePort ?? 0}`
    socket.setNoDelay(true)
    socket.setKeepAlive(true, 10_000)
    socket.on('error', (error) => this.close(error.message))
    socket.on('end', () => this.close('the peer closed the connection'))
    socket.on('close', () => this.close('the connection was closed'))
  }

  get closed(): boolean {
    return this.#closed
  }

  send(frame: Frame): void {
    if (this.#closed) return
    this.#append(frame)
    // A guest may be paused until it has come, and its sender has more to do in this turn.
    if (frame.type === 'checkpoint' || frame.type === 'done') this.#flush()
  }

  /** `handed`: see the invariants above. */
  sendData(frame: Frame, handed: () => void): void {
    if (this.#closed) return handed()
    this.#append(frame).handed.push(handed)
  }

  /** Frames that are here already stay in the reader, too. */
  pause(): void {
    this.#paused = true
    this.#socket.pause()
  }

  resume(): void {
    if (!this.#paused) return
    this.#paused = false
    // What the caller held comes before what the reader holds.
    process.nextTick(() => {
      if (!this.#paused) this.#take((take) => this.#reader.goOn(take))
      if (!this.#paused) this.#socket.resume()
    })
  }

  /** Ends the connection after what was sent so far. Frames that still arrive are dropped. Idempotent. */
  close(reason: string): void {
    if (this.#closed) return
    this.#flush()
    this.#closed = true
    endSocket(this.#socket)
    for (const batch of this.#underWay) this.#finish(batch)
    this.#handlers.closed(reason)
  }

  /** Ends the connection at once. */
  destroy(reason: string): void {
    this.close(reason)
    this.#socket.destroy()
  }

  /** As the receiver of its socket's bytes. */
  target(): Buffer {
    // What still arrives after a close is of no use.
    this.#room = this.#closed ? SCRATCH : this.#reader.room()
    return this.#room
  }

  received(bytes: Buffer, count: number): void {
    this.#take((take) => {
      if (bytes === this.#room) this.#reader.filled(count, take)
      else this.#reader.push(bytes, take)
    })
    this.#sinceTurn += count
    if (this.#sinceTurn >= MOST_PER_TURN) this.#giveTurn()
  }

  /** Otherwise the event loop reads on for as long as the sender is faster than this side. */
  #giveTurn(): void {
    this.#sinceTurn = 0
    if (this.#closed || this.#paused) return
    this.#socket.pause()
    setImmediate(() => {
      if (!this.#paused) this.#socket.resume()
    })
  }

  #take(read: (take: (frame: Frame) => boolean) => void): void {
    if (this.#closed) return
    try {
      read(this.#handle)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      this.close(error.message)
    }
  }

  #append(frame: Frame): Batch {
    const copied = frame.payload.length <= COPY_LIMIT
    const needed = HEADER_SIZE + (copied ? frame.payload.length : 0)
    if (this.#batch !== undefined && this.#batch.used + needed > this.#batch.memory.length)
      this.#flush()
    const batch = (this.#batch ??= this.#newBatch())
    encodeInto(batch, frame, copied)
    return batch
  }

  #newBatch(): Batch {
    // The turn of the event loop that filled the batch ends before it is sent: requests that arrive together leave together.
    process.nextTick(() => this.#flush())
    const memory = this.#spare.pop() ?? Buffer.allocUnsafeSlow(BATCH)
    return { memory, used: 0, from: 0, chunks: [], handed: [] }
  }

  #flush(): void {
    const batch = this.#batch
    if (batch === undefined) return
    this.#batch = undefined
    if (batch.used > batch.from) batch.chunks.push(batch.memory.subarray(batch.from, batch.used))
    this.#underWay.add(batch)
    this.#socket.cork()
    const last = batch.chunks.length - 1
    batch.chunks.forEach((chunk, index) => {
      if (index < last) this.#socket.write(chunk)
      else this.#socket.write(chunk, () => this.#finish(batch))
    })
    this.#socket.uncork()
  }

  #finish(batch: Batch): void {
    if (!this.#underWay.delete(batch)) return
    // After a close the socket may still be writing from this memory: let it go instead of using it again.
    if (!this.#closed && this.#spare.length * BATCH < 4 * MiB) this.#spare.push(batch.memory)
    for (const handed of batch.handed) handed()
  }
}

/** Ends a connection after what was written to it. What still arrives is read and dropped by its listeners. */
export function endSocket(socket: Socket): void {
  socket.end()
  // A peer that does not read would keep the socket for ever.
  const deadline = setTimeout(() => socket.destroy(), 1000).unref()
  socket.once('close', () => clearTimeout(deadline))
  socket.resume()
}

function encodeInto(batch: Batch, frame: Frame, copied: boolean): void {
  if (copied) frame.payload.copy(batch.memory, batch.used + HEADER_SIZE)
  encodeHeader(batch.memory, batch.used, frame, copied)
  batch.used += HEADER_SIZE
  if (copied) {
    batch.used += frame.payload.length
    return
  }
  batch.chunks.push(batch.memory.subarray(batch.from, batch.used), frame.payload)
  batch.from = batch.used
}
