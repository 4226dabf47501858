/**
 * An NBD client: attaches to an export, keeps any number of requests in flight, and reads data straight into the
 * caller's memory.
 *
 * Invariants:
 *  - Each request settles exactly once: with the server's reply, or with LINK_LOST when the socket is closed.
 *  - The caller's buffer is used until the request settles and never after.
 *  - Requests issued in one turn leave in one write. How many are in flight is the caller's to bound.
 */

import { FAST_ZERO, FUA, NO_HOLE, type Extent, type RequestFlags } from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import type { ListenAddress } from './address.ts'
import type { ExportInfo, ListedExport } from './client-handshake.ts'
import { Link, type ClientSecurity } from './client-link.ts'
import { PendingReply, type Asked } from './pending-reply.ts'
import {
  NBD_CMD_BLOCK_STATUS,
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
  writeOffset,
} from './protocol.ts'
import { ReplyDecoder, type ReplySink } from './reply-decoder.ts'

export interface ConnectOptions {
  readonly address: ListenAddress
  readonly exportName: string
  /** Ask for replies in chunks: holes need not be sent, errors have messages, and the status of blocks can be asked for. */
  readonly structured?: boolean
  /** Encrypt, or do not connect. */
  readonly security?: ClientSecurity | undefined
  /** For the connection and the handshake together; 10 s unless told. */
  readonly timeoutMs?: number
  /** Gives up while it is being made. */
  readonly signal?: AbortSignal
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
  readonly #pending = new Map<number, PendingReply>()
  #nextCookie = 1
  #headers: Buffer = NOTHING
  #headersUsed = 0
  #runStart = 0
  #chunks: Buffer[] = []
  #flushing = false
  /** The request whose simple reply is coming in. */
  #current: { pending: PendingReply; error: number } | undefined
  /** The request, and its cookie, of which a chunk is coming in. */
  #chunked: PendingReply | undefined
  #chunkedCookie = 0
  #leaving = false
  #lost: Fault | undefined
  #whenIdle: (() => void) | undefined
  readonly #closed: Promise<void>

  /** @throws Fault: no server, no such export, or a server that breaks the protocol. */
  static async connect({
    address,
    exportName,
    structured = false,
    security,
    timeoutMs = 10_000,
    signal,
  }: ConnectOptions): Promise<NbdClient> {
    const link = new Link(address, security)
    const giveUp = (): void => void link.socket.destroy()
    if (signal?.aborted === true) giveUp()
    signal?.addEventListener('abort', giveUp)
    const tls = security !== undefined
    const goal = { kind: 'attach', exportName, structured, tls } as const
    const outcome = await link.shakeHands(goal, timeoutMs).finally(() => {
      signal?.removeEventListener('abort', giveUp)
    })
    if (outcome.kind === 'attached') return new NbdClient(link, outcome.info)
    throw new Fault('PROTOCOL', 'the server did not grant the export', { where: link.where })
  }

  private constructor(link: Link, info: ExportInfo) {
    this.info = info
    this.#link = link
    link.decoder = new ReplyDecoder(this, info.structured)
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

  /** Why the connection is gone, once it is. */
  get lost(): Fault | undefined {
    return this.#lost
  }

  read(into: Buffer, at: number, flags: RequestFlags = 0): Promise<void> {
    return this.#request(asked(NBD_CMD_READ, at, into.length, into), flags, NOTHING)
  }

  write(from: Buffer, at: number, flags: RequestFlags = 0): Promise<void> {
    return this.#request(asked(NBD_CMD_WRITE, at, from.length), flags, from)
  }

  zero(at: number, length: number, flags: RequestFlags = 0): Promise<void> {
    return this.#request(asked(NBD_CMD_WRITE_ZEROES, at, length), flags, NOTHING)
  }

  trim(at: number, length: number, flags: RequestFlags = 0): Promise<void> {
    return this.#request(asked(NBD_CMD_TRIM, at, length), flags, NOTHING)
  }

  flush(): Promise<void> {
    return this.#request(asked(NBD_CMD_FLUSH, 0, 0), 0, NOTHING)
  }

  /** Extents from `at`; they may end before the range does. Only where the server has given an `allocationId`. */
  status(at: number, length: number): Promise<Extent[]> {
    const contextId = this.info.allocationId
    if (contextId === undefined) {
      const fault = new Fault('NOT_SUPPORTED', 'the server does not tell the status of blocks')
      return Promise.reject(fault)
    }
    return this.#ask({ ...asked(NBD_CMD_BLOCK_STATUS, at, length), contextId }, 0, NOTHING)
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
    if (error === 0 && !pending.maySucceedSimply(this.info.structured)) return undefined
    this.#pending.delete(cookieLow)
    this.#current = { pending, error }
    return error === 0 ? pending.asked.into : NOTHING
  }

  complete(): void {
    const current = this.#current
    if (current === undefined) return
    this.#current = undefined
    current.pending.simple(current.error)
    if (this.#pending.size === 0) this.#whenIdle?.()
  }

  beginChunk(cookieHigh: number, cookieLow: number): boolean {
    this.#chunked = cookieHigh === 0 ? this.#pending.get(cookieLow) : undefined
    this.#chunkedCookie = cookieLow
    return this.#chunked !== undefined
  }

  chunkData(offset: number, length: number): Buffer | undefined {
    return this.#chunked?.data(offset, length)
  }

  chunkContent(type: number, content: Buffer): string | undefined {
    return this.#chunked?.content(type, content)
  }

  completeChunk(done: boolean): string | undefined {
    if (!done) return undefined
    const objection = this.#chunked?.done()
    if (objection !== undefined) return objection
    this.#pending.delete(this.#chunkedCookie)
    if (this.#pending.size === 0) this.#whenIdle?.()
    return undefined
  }

  #request(what: Asked, flags: RequestFlags, payload: Buffer): Promise<void> {
    // What these requests resolve with is no extents; nobody is given them.
    return this.#ask(what, flags, payload) as Promise<unknown> as Promise<void>
  }

  #ask(what: Asked, flags: RequestFlags, payload: Buffer): Promise<Extent[]> {
    const { where } = this.#link
    if (this.#lost !== undefined) return Promise.reject(this.#lost)
    if (this.#leaving) {
      return Promise.reject(new Fault('SHUTDOWN', 'the NBD client is disconnecting', { where }))
    }
    return new Promise((resolve, reject) => {
      const cookie = this.#freeCookie()
      this.#pending.set(cookie, new PendingReply(what, where, resolve, reject))
      this.#append(what.type, wireFlags(flags), cookie, what.at, what.length, payload)
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
    if (this.#current !== undefined) this.#current.pending.fail(this.#lost)
    this.#current = undefined
    for (const pending of this.#pending.values()) pending.fail(this.#lost)
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

/** A request without a context. */
function asked(type: number, at: number, length: number, into: Buffer = NOTHING): Asked {
  return { type, at, length, into, contextId: 0 }
}
