/**
 * One connection of the blktap2 wire: bytes out as their owner has them, bytes in as they come. Decides nothing.
 *
 * Invariants:
 *  - One batch is under way at a time, so what waits stays with its owner, and memory is bounded by BATCH.
 *  - `closed` is reported exactly once; nothing is received after it.
 */

import type { Socket } from 'node:net'

import { Fault } from '../../core/fault.ts'
import { KiB } from '../../core/units.ts'
import { endSocket } from '../link.ts'

const BATCH = 256 * KiB

export interface StreamOwner {
  /** Puts what is to be sent next into `into`. @returns bytes put there; 0 when there is nothing */
  fill(into: Buffer): number
  /** The kernel has what the last fill gave. */
  taken(): void
  /** The chunk is valid during the call only. @throws Fault to end the connection */
  receive(chunk: Buffer): void
  closed(reason: string): void
}

export class ByteStream {
  readonly peer: string
  readonly #socket: Socket
  readonly #owner: StreamOwner
  #memory: Buffer | undefined
  #kicked = false
  #underWay = false
  #batches = 0
  #closed = false

  constructor(socket: Socket, owner: StreamOwner) {
    this.#socket = socket
    this.#owner = owner
    this.peer = `${socket.remoteAddress ?? 'unknown'}:${socket.remotePort ?? 0}`
    socket.setNoDelay(true)
    // Idle peers of this wire send nothing at all: only the kernel can tell that one is gone.
    socket.setKeepAlive(true, 10_000)
    socket.on('data', (chunk: Buffer) => this.#receive(chunk))
    socket.on('error', (error) => this.close(error.message))
    socket.on('end', () => this.close('the peer closed the connection'))
    socket.on('close', () => this.close('the connection was closed'))
  }

  get closed(): boolean {
    return this.#closed
  }

  /** Whether a batch waits for the peer to take it. */
  get busy(): boolean {
    return this.#underWay
  }

  /** Batches that the kernel has taken so far: it grows as long as the peer takes what it is sent. */
  get progress(): number {
    return this.#batches
  }

  /** The owner has something to send. What comes in one turn of the event loop leaves together. */
  kick(): void {
    if (this.#kicked) return
    this.#kicked = true
    process.nextTick(() => {
      this.#kicked = false
      this.#pump()
    })
  }

  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  /** Ends the connection after one last batch of what is to be sent. Idempotent. */
  close(reason: string): void {
    if (this.#closed) return
    this.#closed = true
    const last = Buffer.alloc(BATCH)
    const length = this.#socket.writable ? this.#owner.fill(last) : 0
    if (length > 0) this.#socket.write(last.subarray(0, length))
    endSocket(this.#socket)
    this.#owner.closed(reason)
  }

  /** Ends the connection at once. */
  destroy(reason: string): void {
    this.close(reason)
    this.#socket.destroy()
  }

  #receive(chunk: Buffer): void {
    if (this.#closed) return
    try {
      this.#owner.receive(chunk)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      this.close(error.message)
    }
  }

  #pump(): void {
    if (this.#closed || this.#underWay) return
    this.#memory ??= Buffer.allocUnsafeSlow(BATCH)
    const length = this.#owner.fill(this.#memory)
    if (length === 0) return
    this.#underWay = true
    this.#socket.write(this.#memory.subarray(0, length), () => {
      this.#underWay = false
      this.#batches += 1
      if (this.#closed) return
      this.#owner.taken()
      this.#pump()
    })
  }
}
