/**
 * An NBD client: attaches to an export, keeps any number of requests in flight, and reads data straight into the
 * caller's memory.
 *
 * Invariants:
 *  - Each request settles exactly once: with the server's reply, or with LINK_LOST when the socket is closed.
 *  - The caller's buffer is used until the request settles and never after.
 *  - Requests issued in one turn leave in one write. How many are in flight is the caller's to bound.
 */

import { FAST_ZERO, FUA, NO_HOLE, type RequestFlags } from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import type { ListenAddress } from './address.ts'
import type { ExportInfo, ListedExport } from './client-handshake.ts'
import { Link } from './client-link.ts'
import {
  NBD_CMD_DISC,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_REQUEST_MAGIC,
  REQUEST_HEADER_SIZE,
  faultCodeOf,
  writeOffset,
} from './protocol.ts'
import { ReplyDecoder, type ReplySink } from './reply-decoder.ts'

export interface ConnectOptions {
  readonly address: ListenAddress
  readonly exportName: string
  /** For the connection and the handshake together; 10 s unless told. */
  readonly timeoutMs?: number
}

interface Pending {
  readonly what: string
  /** Memory for the data of a READ, else empty. */
  readonly into: Buffer
  readonly resolve: () => void
  readonly reject: (fault: Fault) => void
}

const NOTHING = Buffer.alloc(0)
/** Request headers are written side by side in blocks of this many; a block is left to the collector when full. */
const HEADERS_PER_BLOCK = 256

/** What the server offers, without attaching to any of it. */
export async function listExports(
  address: ListenAddress,
  timeoutMs = 10_000,
): Promise<readonly ListedExport[]> {
  const link = new Link(address)
  const outcome = await link.shakeHands({ kind: 'list' }, timeoutMs)
  link.socket.end()
  link.socket.destroySoon()
  return outcome.kind === 'listed' ? outcome.exports : []
}

export class NbdClient implements ReplySink {
  readonly info: ExportInfo
  readonly #link: Link
  readonly #pending = new Map<number, Pending>()
  #nextCookie = 1
  #headers: Buffer = NOTHING
  #headersUsed = 0
  #runStart = 0
  #chunks: Buffer[] = []
  #flushing = false
  #current: { pending: Pending; error: number } | undefined
  #leaving = false
  #lost: Fault | undefined
  #whenIdle: (() => void) | undefined
  readonly #closed: Promise<void>

  /** @throws Fault: no server, no such export, or a server that breaks the protocol. */
  static async connect({
    address,
    exportName,
    timeoutMs = 10_000,
  }: ConnectOptions): Promise<NbdClient> {
    const link = new Link(address)
    const outcome = await link.shakeHands({ kind: 'attach', exportName }, timeoutMs)
    if (outcome.kind === 'attached') return new NbdClient(link, outcome.info)
    throw new Fault('PROTOCOL', 'the server did not grant the export', { where: link.where })
  }

  private constructor(link: Link, info: ExportInfo) {
    this.info = info
    this.#link = link
    link.decoder = new ReplyDecoder(this)
    let cause: Error | undefined
    link.socket.on('error', (error) => (cause = error))
    this.#closed = new Promise((resolve) => {
      const onClose = (): void => {
        this.#lose(cause)
        resolve()
      }
      // The socket may have closed between the handshake and this line.
      if (link.socket.destroyed) onClose()
      else link.socket.once('close', onClose)
    })
  }

  /** Requests without an answer yet. */
  get outstanding(): number {
    return this.#pending.size
  }

  /** Resolves when the connection is closed, for whatever reason. */
  get closed(): Promise<void> {
    return this.#closed
  }

  read(into: Buffer, at: number, flags: RequestFlags = 0): Promise<void> {
    return this.#request(NBD_CMD_READ, flags, at, into.length, NOTHING, into)
  }

  write(from: Buffer, at: number, flags: RequestFlags = 0): Promise<void> {
    return this.#request(NBD_CMD_WRITE, flags, at, from.length, from, NOTHING)
  }

  zero(at: number, length: number, flags: RequestFlags = 0): Promise<void> {
    return this.#request(NBD_CMD_WRITE_ZEROES, flags, at, length, NOTHING, NOTHING)
  }

  trim(at: number, length: number, flags: RequestFlags = 0): Promise<void> {
    return this.#request(NBD_CMD_TRIM, flags, at, length, NOTHING, NOTHING)
  }

  flush(): Promise<void> {
    return this.#request(NBD_CMD_FLUSH, 0, 0, 0, NOTHING, NOTHING)
  }

  /** Waits for what is outstanding, says goodbye, and resolves when the connection is closed. */
  async disconnect(): Promise<void> {
    this.#leaving = true
    if (this.#pending.size > 0 && this.#lost === undefined)
      await new Promise<void>((resolve) => (this.#whenIdle = resolve))
    if (this.#lost === undefined) {
      this.#append(NBD_CMD_DISC, 0, 0, 0, 0, NOTHING)
      this.#flush()
      this.#link.socket.end()
    }
    await this.#closed
  }

  /** Closes the socket without a goodbye; outstanding requests fail with LINK_LOST. */
  abandon(): void {
    this.#link.socket.destroy()
  }

  begin(error: number, cookieHigh: number, cookieLow: number): Buffer | undefined {
    const pending = cookieHigh === 0 ? this.#pending.get(cookieLow) : undefined
    if (pending === undefined) return undefined
    this.#pending.delete(cookieLow)
    this.#current = { pending, error }
    return error === 0 ? pending.into : NOTHING
  }

  complete(): void {
    const current = this.#current
    if (current === undefined) return
    this.#current = undefined
    const { pending, error } = current
    if (error === 0) pending.resolve()
    else {
      const what = `${pending.what} failed on the server (NBD error ${error})`
      pending.reject(new Fault(faultCodeOf(error), what, { where: this.#link.where }))
    }
    if (this.#pending.size === 0) this.#whenIdle?.()
  }

  #request(
    type: number,
    flags: RequestFlags,
    at: number,
    length: number,
    payload: Buffer,
    into: Buffer,
  ): Promise<void> {
    if (this.#lost !== undefined) return Promise.reject(this.#lost)
    if (this.#leaving) {
      return Promise.reject(
        new Fault('SHUTDOWN', 'the NBD client is disconnecting', { where: this.#link.where }),
      )
    }
    return new Promise((resolve, reject) => {
      const cookie = this.#freeCookie()
      this.#pending.set(cookie, { what: describe(type, at, length), into, resolve, reject })
      this.#append(type, wireFlags(flags), cookie, at, length, payload)
      if (this.#flushing) return
      this.#flushing = true
      // Runs when the promises settled by one chunk of replies have led to their next requests.
      process.nextTick(this.#flush)
    })
  }

  #freeCookie(): number {
    while (this.#pending.has(this.#nextCookie)) this.#nextCookie = (this.#nextCookie + 1) >>> 0
    const cookie = this.#nextCookie
    this.#nextCookie = (cookie + 1) >>> 0
    return cookie
  }

  #append(
    type: number,
    flags: number,
    cookie: number,
    at: number,
    length: number,
    payload: Buffer,
  ): void {
    if (this.#headersUsed === this.#headers.length) {
      this.#closeRun()
      this.#headers = Buffer.allocUnsafeSlow(HEADERS_PER_BLOCK * REQUEST_HEADER_SIZE)
      this.#headersUsed = 0
      this.#runStart = 0
    }
    writeRequest(this.#headers, this.#headersUsed, type, flags, cookie, at, length)
    this.#headersUsed += REQUEST_HEADER_SIZE
    if (payload.length === 0) return
    this.#closeRun()
    this.#chunks.push(payload)
  }

  #closeRun(): void {
    if (this.#headersUsed > this.#runStart)
      this.#chunks.push(this.#headers.subarray(this.#runStart, this.#headersUsed))
    this.#runStart = this.#headersUsed
  }

  readonly #flush = (): void => {
    this.#flushing = false
    this.#closeRun()
    const chunks = this.#chunks
    this.#chunks = []
    if (this.#lost !== undefined) return
    const { socket } = this.#link
    socket.cork()
    for (const chunk of chunks) socket.write(chunk)
    socket.uncork()
  }

  #lose(cause: Error | undefined): void {
    const context = { where: this.#link.where, cause, remedy: 'connect again' }
    this.#lost = new Fault('LINK_LOST', 'the connection to the NBD server is gone', context)
    if (this.#current !== undefined) this.#current.pending.reject(this.#lost)
    this.#current = undefined
    for (const pending of this.#pending.values()) pending.reject(this.#lost)
    this.#pending.clear()
    this.#whenIdle?.()
  }
}

/** magic u32, flags u16, type u16, cookie u64, offset u64, length u32 (section "Request message"). */
export function writeRequest(
  bytes: Buffer,
  position: number,
  type: number,
  flags: number,
  cookie: number,
  at: number,
  length: number,
): void {
  bytes.writeUInt32BE(NBD_REQUEST_MAGIC, position)
  bytes.writeUInt16BE(flags, position + 4)
  bytes.writeUInt16BE(type, position + 6)
  bytes.writeUInt32BE(0, position + 8)
  bytes.writeUInt32BE(cookie, position + 12)
  writeOffset(bytes, at, position + 16)
  bytes.writeUInt32BE(length, position + 24)
}

function wireFlags(flags: RequestFlags): number {
  return (
    ((flags & FUA) !== 0 ? NBD_CMD_FLAG_FUA : 0) |
    ((flags & NO_HOLE) !== 0 ? NBD_CMD_FLAG_NO_HOLE : 0) |
    ((flags & FAST_ZERO) !== 0 ? NBD_CMD_FLAG_FAST_ZERO : 0)
  )
}

const NAMES = ['read', 'write', 'disconnect', 'flush', 'trim', 'cache', 'zero']

function describe(type: number, at: number, length: number): string {
  return `${NAMES[type] ?? 'request'} of ${length} bytes at ${at}`
}
