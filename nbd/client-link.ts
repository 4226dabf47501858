/**
 * A client's socket and who receives its bytes: the handshake first, the decoder of replies later.
 */

import net from 'node:net'

import { Fault, asFault } from '../core/fault.ts'
import { formatListenAddress, type ListenAddress } from './address.ts'
import { ClientHandshake, type ClientGoal, type ClientOutcome } from './client-handshake.ts'
import type { ReplyDecoder } from './reply-decoder.ts'
import { SCRATCH, SMALL_SCRATCH, readInto, type Receiver } from './transport.ts'

export class Link implements Receiver {
  readonly socket: net.Socket
  readonly where: string
  decoder: ReplyDecoder | undefined
  #handshake: ClientHandshake | undefined
  #settle: ((outcome: ClientOutcome) => void) | undefined
  #direct: Buffer | undefined

  constructor(address: ListenAddress) {
    this.where = formatListenAddress(address)
    const onread = readInto(this)
    this.socket =
      address.kind === 'unix'
        ? net.connect({ path: address.path, onread })
        : net.connect({ host: address.host, port: address.port, noDelay: true, onread })
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

  #receivedEarly(bytes: Buffer): void {
    const handshake = this.#handshake
    if (handshake === undefined || this.#settle === undefined) return
    const { consumed, sends, outcome } = handshake.push(bytes)
    this.socket.cork()
    for (const send of sends) this.socket.write(send)
    this.socket.uncork()
    if (outcome === undefined) return
    if (outcome.kind === 'attached' && consumed < bytes.length) {
      const fault = new Fault('PROTOCOL', 'the server answers before it was asked')
      this.#settle({ kind: 'failed', fault })
    } else {
      this.#settle(outcome)
    }
    this.#settle = undefined
  }
}
