/**
 * A client's socket and who receives its bytes: the handshake first, the decoder of replies later.
 *
 * Invariant: where credentials are given, nothing that came before TLS was there is taken for what comes after it.
 */

import net from 'node:net'

import { Fault, asFault } from '../core/fault.ts'
import type { Material } from '../net/credentials.ts'
import { secureDialled } from '../net/secure-socket.ts'
import { formatListenAddress, type ListenAddress } from './address.ts'
import { ClientHandshake, type ClientGoal, type ClientOutcome } from './client-handshake.ts'
import type { ReplyDecoder } from './reply-decoder.ts'
import { SCRATCH, SMALL_SCRATCH, readInto, type Receiver } from '../net/transport.ts'

/** How a client proves itself, and whom it expects. */
export interface ClientSecurity {
  readonly material: Material
  /** The name that the server's certificate must have. */
  readonly peerName: string
}

export class Link implements Receiver {
  /** Another one once TLS is there. */
  socket: net.Socket
  readonly where: string
  decoder: ReplyDecoder | undefined
  readonly #security: ClientSecurity | undefined
  #handshake: ClientHandshake | undefined
  #settle: ((outcome: ClientOutcome) => void) | undefined
  #direct: Buffer | undefined

  constructor(address: ListenAddress, security?: ClientSecurity) {
    this.where = formatListenAddress(address)
    this.#security = security
    // What is to become TLS is read in the plain way, because TLS takes over the reading.
    const reading = security === undefined ? { onread: readInto(this) } : {}
    this.socket =
      address.kind === 'unix'
        ? net.connect({ path: address.path, ...reading })
        : net.connect({ host: address.host, port: address.port, noDelay: true, ...reading })
    if (security !== undefined) this.socket.on('data', this.#chunk)
  }

  /** @throws Fault when the server refuses, breaks the protocol, goes away or takes too long. */
  async shakeHands(goal: ClientGoal, timeoutMs: number): Promise<ClientOutcome> {
    this.#handshake = new ClientHandshake(goal)
    let cause: Error | undefined
    const { where } = this
    const outcome = await new Promise<ClientOutcome>((resolve) => {
      const fail = (fault: Fault): void => resolve({ kind: 'failed', fault })
      const timer = setTimeout(() => {
        fail(new Fault('TIMEOUT', 'the NBD server does not answer', { where }))
        this.socket.destroy()
      }, timeoutMs)
      this.socket.on('error', (error) => (cause = error))
      this.socket.on('close', () => {
        clearTimeout(timer)
        fail(asFault(cause ?? new Error('closed'), 'LINK_LOST', 'no NBD server answers', { where }))
      })
      this.#settle = (settled) => {
        clearTimeout(timer)
        resolve(settled)
      }
    })
    if (outcome.kind !== 'failed') return outcome
    this.socket.destroy()
    const { code, what } = outcome.fault
    throw new Fault(code, what, { where, cause: outcome.fault })
  }

  target(): Buffer {
    this.#direct = this.decoder?.destination
    if (this.#direct !== undefined) return this.#direct
    return this.decoder?.expectsLargeData === true ? SMALL_SCRATCH : SCRATCH
  }

  received(bytes: Buffer, count: number): void {
    const { decoder } = this
    if (decoder === undefined) return this.#receivedEarly(bytes.subarray(0, count))
    if (bytes === this.#direct) decoder.filled(count)
    else decoder.push(bytes, count)
    const { violation } = decoder
    if (violation !== undefined)
      this.socket.destroy(new Fault('PROTOCOL', violation, { where: this.where }))
  }

  readonly #chunk = (chunk: Buffer): void => this.received(chunk, chunk.length)

  #receivedEarly(bytes: Buffer): void {
    const handshake = this.#handshake
    if (handshake === undefined || this.#settle === undefined) return
    const { consumed, sends, outcome } = handshake.push(bytes)
    this.#send(sends)
    if (outcome === undefined) return
    const early = outcome.kind === 'attached' || outcome.kind === 'startTls'
    if (early && consumed < bytes.length) {
      this.#fail(new Fault('PROTOCOL', 'the server answers before it was asked'))
    } else if (outcome.kind === 'startTls') {
      this.#secure(handshake)
    } else {
      this.#settle(outcome)
      this.#settle = undefined
    }
  }

  #secure(handshake: ClientHandshake): void {
    const security = this.#security
    if (security === undefined) return this.#fail(new Fault('INVALID', 'there are no credentials'))
    const raw = this.socket
    raw.off('data', this.#chunk)
    secureDialled(raw, security.material, security.peerName, {
      secured: (socket) => {
        this.socket = socket
        socket.on('data', this.#chunk)
        this.#send(handshake.secured())
      },
      failed: (reason) => {
        this.#fail(new Fault('REFUSED', `TLS with the NBD server failed: ${reason}`))
        raw.destroy()
      },
    })
  }

  #fail(fault: Fault): void {
    this.#settle?.({ kind: 'failed', fault })
    this.#settle = undefined
  }

  #send(sends: readonly Buffer[]): void {
    this.socket.cork()
    for (const send of sends) this.socket.write(send)
    this.socket.uncork()
  }
}
