/**
 * One client of the server: moves bytes from its socket to the handshake, then to the decoder, and ends in order.
 *
 *   negotiation -> securing -> negotiation -> transmission -> ending -> closed        (securing: only where TLS is started)
 *
 * Invariants:
 *  - While a request waits for admission the socket is not read: what a client can queue here is one chunk.
 *  - DISC, a half-closed client and a stopping server end alike: requests with the device finish, their replies leave,
 *    then the socket is closed. A lost socket skips the replies, never the requests.
 *  - `onClosed` is called once, when the socket is closed and no request is left with the device.
 */

import type net from 'node:net'

import { assert } from '../core/assert.ts'
import type { Logger } from '../core/logger.ts'
import { RequestDecoder } from './decoder.ts'
import type { Export, ExportTable } from './export.ts'
import { MemoryClaim, type MemoryShare } from './memory-share.ts'
import { tlsStateOf, type ListenerSecurity } from './listener-security.ts'
import { Negotiation, greeting, type Agreement, type NegotiationLimits } from './negotiation.ts'
import { PacedSocket } from './paced-socket.ts'
import { MAX_PAYLOAD } from './protocol.ts'
import { startTls } from './start-tls.ts'
import { Transmission, type Window } from './transmission.ts'
import {
  SCRATCH,
  SMALL_SCRATCH,
  adoptSocket,
  type Receiver,
  type TransportMode,
} from '../net/transport.ts'
import type { Wakefulness } from './wakefulness.ts'

export interface ConnectionOptions {
  readonly exports: ExportTable
  readonly share: MemoryShare
  readonly logger: Logger
  readonly window: Window
  readonly negotiation: NegotiationLimits
  readonly handshakeMs: number
  /** How long a client may take to close its side after the server closed its own. */
  readonly lingerMs: number
  readonly transport: TransportMode
  readonly wakefulness: Wakefulness
  /** Of the listener that accepted it; undefined where there is no TLS. */
  readonly security: ListenerSecurity | undefined
  readonly onClosed: (connection: Connection) => void
}

type Phase = 'negotiation' | 'securing' | 'transmission' | 'ending' | 'closed'

/** What status shows of a connection. */
export interface ConnectionStatus {
  readonly id: number
  readonly peer: string
  readonly phase: Phase
  readonly exportName: string | undefined
  readonly executing: number
  readonly undrainedReplies: number
  readonly bytesHeld: number
  readonly requests: number
  readonly errors: number
  readonly bytesRead: number
  readonly bytesWritten: number
}

/** A longer WRITE is not drained: the client is dropped. Others allow up to twice the common maximum. */
const MAX_DRAIN = 2 * MAX_PAYLOAD

export class Connection implements Receiver {
  readonly id: number
  readonly peer: string
  readonly claim: MemoryClaim
  /** Pieces of any size that came from the client. */
  reads = 0
  readonly #options: ConnectionOptions
  /** Another one once TLS is there. */
  #socket: net.Socket
  /** Who the client has proved to be, under TLS. */
  #identity: string | undefined
  readonly #negotiation: Negotiation
  #deadline: NodeJS.Timeout | undefined
  #phase: Phase = 'negotiation'
  #chosen: Export | undefined
  #transmission: Transmission | undefined
  #decoder: RequestDecoder | undefined
  /** The decoder's own memory that the next read goes to. */
  #direct: Buffer | undefined
  /** Bytes that arrived behind a waiting request, and how much of the first chunk is used up. */
  #stash: Buffer[] = []
  #stashAt = 0
  #stalled = false
  #ended = false
  /** The server has ended it. */
  #cut = false
  #reported = false

  constructor(accepted: net.Socket, id: number, options: ConnectionOptions) {
    this.id = id
    this.peer = peerName(accepted)
    this.#options = options
    this.claim = new MemoryClaim(this.#onProgress)
    const tls = tlsStateOf(options.security)
    this.#negotiation = new Negotiation(options.exports, options.negotiation, tls)
    this.#socket = adoptSocket(accepted, this, options.transport)
    this.#socket.setNoDelay(true)
    this.#socket.setKeepAlive(true, 30_000)
    this.#listen(this.#socket)
    this.#deadline = setTimeout(() => {
      this.#drop('the handshake took too long')
    }, options.handshakeMs)
    this.#socket.write(greeting())
    this.#socket.resume()
  }

  #listen(socket: net.Socket): void {
    socket.on('error', this.#onError)
    socket.on('end', this.#onEnd)
    socket.on('close', this.#onClose)
    socket.on('drain', this.#onDrain)
  }

  get status(): ConnectionStatus {
    const transmission = this.#transmission
    return {
      id: this.id,
      peer: this.peer,
      phase: this.#phase,
      exportName: this.#chosen?.name,
      executing: transmission?.executing ?? 0,
      undrainedReplies: transmission?.undrained ?? 0,
      bytesHeld: this.claim.held,
      requests: transmission?.requests ?? 0,
      errors: transmission?.errors ?? 0,
      bytesRead: transmission?.bytesRead ?? 0,
      bytesWritten: transmission?.bytesWritten ?? 0,
    }
  }

  /** Memory is held that only the client's own progress can free. While its export is paused it may not be able to make any. */
  get holdsUpMemory(): boolean {
    if (this.#chosen?.hold?.held === true) return false
    if (this.claim.held === 0) return false
    return this.#decoder?.midPayload === true || (this.#transmission?.undrained ?? 0) > 0
  }

  /** The next step is the client's: to ask for something, or to take its answers. */
  get idle(): boolean {
    return this.#phase === 'transmission' && this.#transmission?.executing === 0
  }

  get #negotiating(): boolean {
    return this.#phase === 'negotiation' || this.#phase === 'securing'
  }

  /** A number that changes with every step the client takes: a request sent whole, replies taken. */
  get steps(): number {
    return this.#transmission?.steps ?? 0
  }

  /** Whether the client has attached to this export. */
  uses(exported: Export): boolean {
    return this.#chosen === exported
  }

  /** Ends in order: a handshake at once, a transmission when it is quiet. New requests get ESHUTDOWN meanwhile. */
  shutDown(): void {
    if (this.#negotiating) return this.destroy()
    this.#transmission?.stop()
    // What waits to be admitted is refused now.
    if (this.#stalled) this.#goOn()
    this.#beginEnding()
  }

  /** Closes the socket at once. Requests with the device still finish. */
  destroy(): void {
    this.#cut = true
    this.#socket.destroy()
  }

  target(): Buffer {
    this.#direct = this.#phase === 'transmission' ? this.#decoder?.destination : undefined
    if (this.#direct !== undefined) return this.#direct
    return this.#decoder?.expectsLargePayload === true ? SMALL_SCRATCH : SCRATCH
  }

  received(bytes: Buffer, count: number): void {
    this.reads += 1
    if (this.#phase === 'negotiation') return this.#negotiate(bytes.subarray(0, count))
    const decoder = this.#decoder
    // After DISC or a violation nothing that the client sends matters.
    if (decoder === undefined || decoder.ended || this.#ended) return
    if (bytes === this.#direct) {
      decoder.filled(count)
      this.#afterDecoding(decoder)
    } else if (this.#stalled) {
      this.#stash.push(Buffer.from(bytes.subarray(0, count)))
    } else {
      this.#decode(decoder, bytes, 0, count)
    }
  }

  #negotiate(bytes: Buffer): void {
    const { consumed, replies, outcome } = this.#negotiation.push(bytes)
    let room = true
    this.#socket.cork()
    for (const reply of replies) room = this.#socket.write(reply)
    this.#socket.uncork()
    if (outcome === undefined) {
      // A client that asks without reading the answers is not read either.
      if (!room) this.#socket.pause()
    } else if (outcome.kind === 'transmit') {
      this.#transmit(outcome)
      const decoder = this.#decoder
      if (decoder !== undefined && consumed < bytes.length)
        this.#decode(decoder, bytes, consumed, bytes.length)
    } else if (outcome.kind === 'startTls') {
      this.#secure(outcome.granted)
    } else if (outcome.fault) {
      this.#drop(outcome.reason)
    } else {
      this.#end()
    }
  }

  /** The deadline of the handshake is TLS's as well. */
  #secure(granted: Buffer): void {
    const { security, logger } = this.#options
    assert(security !== undefined, 'TLS is granted where there are credentials')
    const raw = this.#socket
    this.#phase = 'securing'
    startTls(raw, granted, security, logger, {
      secured: (socket, identity, who) => {
        if (this.#phase !== 'securing') return void socket.destroy()
        // It closes the one below it, and is closed with it.
        raw.off('end', this.#onEnd).off('close', this.#onClose).off('drain', this.#onDrain)
        this.#phase = 'negotiation'
        this.#identity = identity
        this.#negotiation.secured(who)
        this.#socket = adoptSocket(socket, this, 'copying')
        this.#listen(socket)
        socket.resume()
      },
      // A client whose certificate fails must be sent away, though it is encrypted (section "FORCEDTLS mode").
      failed: (reason) => {
        // The client may have gone by itself, because it does not accept this side: that is worth a line, too.
        if (!this.#cut) this.#drop(`TLS: ${reason}`)
      },
    })
  }

  #transmit({ chosen, format, contexts }: Agreement): void {
    const { share, window, logger, wakefulness } = this.#options
    clearTimeout(this.#deadline)
    this.#chosen = chosen
    this.#phase = 'transmission'
    this.#transmission = new Transmission({
      chosen,
      format,
      contexts,
      share,
      window,
      logger,
      wakefulness,
      claim: this.claim,
      socket: this.#identity === undefined ? this.#socket : new PacedSocket(this.#socket),
      onProgress: this.#onProgress,
    })
    const style = format.kind === 'extended' ? 'extended' : 'compact'
    this.#decoder = new RequestDecoder(this.#transmission, MAX_DRAIN, style)
    const { id, peer } = this
    const identity = this.#identity
    logger.debug(
      { connection: id, peer, identity, export: chosen.name, replies: format.kind },
      'client attached',
    )
  }

  /** Decodes a chunk; what cannot be admitted yet is kept, and the socket paused. */
  #decode(decoder: RequestDecoder, bytes: Buffer, from: number, to: number): void {
    const at = decoder.push(bytes, from, to)
    if (decoder.waiting) {
      if (at < to) this.#stash.push(Buffer.from(bytes.subarray(at, to)))
      this.#stalled = true
      this.#socket.pause()
    }
    this.#afterDecoding(decoder)
  }

  #afterDecoding(decoder: RequestDecoder): void {
    this.#transmission?.flush()
    if (!decoder.ended) return
    if (decoder.violation !== undefined) this.#drop(decoder.violation)
    else this.#beginEnding()
  }

  /** Something finished: goes on with what had to wait, or with ending. */
  readonly #onProgress = (): void => {
    if (this.#stalled && this.#phase !== 'closed' && !this.#ended) this.#goOn()
    if (this.#phase === 'ending') this.#endWhenQuiet()
    if (this.#phase === 'closed') this.#report()
  }

  #goOn(): void {
    const decoder = this.#decoder
    if (decoder === undefined || decoder.ended) return
    decoder.push(SCRATCH, 0, 0)
    while (decoder.ready) {
      const chunk = this.#stash[0]
      if (chunk === undefined) break
      this.#stashAt = decoder.push(chunk, this.#stashAt, chunk.length)
      if (this.#stashAt < chunk.length) break
      this.#stash.shift()
      this.#stashAt = 0
    }
    if (!decoder.waiting) {
      this.#stalled = false
      this.#socket.resume()
    }
    this.#afterDecoding(decoder)
  }

  /** A client that drains its handshake replies is read again. */
  readonly #onDrain = (): void => {
    if (this.#phase === 'negotiation') this.#socket.resume()
  }

  readonly #onError = (error: Error): void => {
    const { id, peer } = this
    this.#options.logger.debug({ connection: id, peer, error }, 'connection failed')
  }

  readonly #onEnd = (): void => {
    if (this.#negotiating) return this.destroy()
    if (this.#ended) this.#socket.destroySoon()
    else this.#beginEnding()
  }

  #beginEnding(): void {
    if (this.#phase !== 'transmission') return
    this.#phase = 'ending'
    this.#endWhenQuiet()
  }

  #endWhenQuiet(): void {
    // A request that waits to be admitted was sent before the end.
    if (this.#transmission?.quiet === true && !this.#stalled) this.#end()
  }

  /** Sends what is left and the end; then the client has `lingerMs` to close its side, lest a reset eat the replies. */
  #end(): void {
    if (this.#ended) return
    this.#ended = true
    this.#phase = 'ending'
    clearTimeout(this.#deadline)
    this.#deadline = setTimeout(() => this.destroy(), this.#options.lingerMs)
    this.#socket.end()
    if (this.#socket.readableEnded) this.#socket.destroySoon()
    else this.#socket.resume()
  }

  #drop(reason: string): void {
    const { logger } = this.#options
    logger.warn({ connection: this.id, peer: this.peer, reason }, 'client dropped')
    this.destroy()
  }

  readonly #onClose = (): void => {
    clearTimeout(this.#deadline)
    this.#phase = 'closed'
    this.#stash = []
    this.#options.share.cancel(this.claim)
    this.#transmission?.close()
    this.#report()
  }

  #report(): void {
    if (this.#reported || (this.#transmission?.executing ?? 0) > 0) return
    this.#reported = true
    this.#options.onClosed(this)
  }
}

function peerName(socket: net.Socket): string {
  return socket.remoteAddress === undefined
    ? 'unix'
    : `${socket.remoteAddress}:${socket.remotePort ?? 0}`
}
