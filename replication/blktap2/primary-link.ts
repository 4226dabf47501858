/**
 * The primary's end of a blktap2 connection, as a Link: frames become requests, answers become frames.
 *
 * Invariants:
 *  - A hello is answered only after the peer has answered a first `creq`, which commits nothing: whatever else may listen
 *    there is never taken for a secondary.
 *  - No copy goes over this wire: neither a secondary that would need one, nor a part of one, gets past this link.
 *  - A sign of life is reported only while the peer takes what it is sent, and answers the last `creq`: the wire has no heartbeats.
 *  - Once a peer was accepted, its loss is final: what it holds then is unknown, and an old one takes over by itself. No second
 *    connection is made; each attempt is refused here, until both sides are started anew.
 */

import { randomUUID } from 'node:crypto'
import { connect, type Socket } from 'node:net'

import { assert } from '../../core/assert.ts'
import { Fault } from '../../core/fault.ts'
import type { Dial, Link, LinkHandlers } from '../environment.ts'
import { frame, PARTIAL, type Frame } from '../machine/frame.ts'
import { encodeRefusal } from '../machine/handshake.ts'
import { secondaryHello } from './assumed-hello.ts'
import { ByteStream } from './byte-stream.ts'
import { RequestQueue } from './request-queue.ts'
import { DoneReader } from './wire.ts'

const NO_COPY =
  'a copy was asked for, which the blktap2 wire cannot carry: make the images equal, and start both sides anew'

/** What the connections of one group have in common. */
interface Acquaintance {
  /** Why there will be no further connection. */
  lost: string | undefined
}

/** Dials an old secondary, or one of ours with wire=blktap2. `nowMs`: a clock that never goes back. */
export function blktap2Dial(host: string, port: number, nowMs: () => number): Dial {
  const acquaintance: Acquaintance = { lost: undefined }
  return (connected, failed) => {
    const { lost } = acquaintance
    if (lost !== undefined) return refuse(connected, lost)
    const socket = connect({ host, port })
    const fail = (error: Error): void => failed(error.message)
    socket.once('error', fail)
    socket.once('connect', () => {
      socket.off('error', fail)
      connected((handlers) => new PrimaryLink(socket, handlers, acquaintance, nowMs))
    })
    return () => socket.destroy()
  }
}

/** A `creq` that is not answered yet. */
interface Commit {
  /** Undefined for the first one, which no checkpoint stands for. */
  readonly checkpoint: number | undefined
  readonly sentMs: number
}

class PrimaryLink implements Link {
  readonly #handlers: LinkHandlers
  readonly #acquaintance: Acquaintance
  readonly #nowMs: () => number
  readonly #stream: ByteStream
  readonly #queue = new RequestQueue()
  readonly #reader = new DoneReader()
  readonly #commits: Commit[] = []
  /** The answer to our hello. */
  #answer: Buffer | undefined
  /** Why nothing leaves any more: what our side would send is not for this wire. */
  #refused: string | undefined
  #accepted = false
  #progressSeen = 0
  /** Our side ends the connection and knows why. */
  #closing = false

  constructor(
    socket: Socket,
    handlers: LinkHandlers,
    acquaintance: Acquaintance,
    nowMs: () => number,
  ) {
    this.#handlers = handlers
    this.#acquaintance = acquaintance
    this.#nowMs = nowMs
    this.#stream = new ByteStream(socket, {
      fill: (into) => this.#queue.fill(into),
      taken: () => this.#queue.taken(),
      receive: (chunk) => this.#reader.push(chunk, () => this.#receive()),
      closed: (reason) => this.#closed(reason),
    })
  }

  get peer(): string {
    return this.#stream.peer
  }

  get closed(): boolean {
    return this.#stream.closed
  }

  send(outgoing: Frame): void {
    if (this.closed || this.#refused !== undefined) return
    switch (outgoing.type) {
      case 'hello':
        return this.#greet(outgoing.payload)
      case 'checkpoint':
        if ((outgoing.flags & PARTIAL) !== 0) return this.#refuse(NO_COPY)
        return this.#commit(outgoing.position)
      case 'heartbeat':
        if (this.#showsLife()) this.#deliver(frame('heartbeat'))
        return
      case 'write':
      case 'zero':
        return this.#put(outgoing)
      case 'accept':
      case 'complete':
      case 'offer':
      case 'resized':
      case 'withdraw':
      case 'refuse':
      case 'done':
      case 'pressure':
      case 'discard':
      case 'state':
      case 'segment':
      case 'dirty':
      case 'ready':
      case 'synced':
      case 'handover':
      case 'compare':
      case 'sums':
      case 'acknowledge':
      case 'received':
      case 'stored':
        // Nothing on this wire says it.
        return
    }
  }

  sendData(outgoing: Frame, handed: () => void): void {
    if (this.closed || this.#refused !== undefined) return handed()
    this.#put(outgoing, handed)
  }

  pause(): void {
    this.#stream.pause()
  }

  resume(): void {
    this.#stream.resume()
  }

  close(reason: string): void {
    this.#closing = true
    this.#stream.close(reason)
  }

  #greet(hello: Buffer): void {
    // Its name is made up for this connection: nothing on the wire tells one peer from another.
    const answer = secondaryHello(hello, `blktap2-${randomUUID()}`)
    if (typeof answer === 'string') return this.#refuse(answer)
    this.#answer = answer.hello
    this.#commit(undefined)
  }

  /** Our machine ends the connection when it hears why. */
  #refuse(reason: string): void {
    this.#refused = reason
    this.#deliver(refusal(reason))
  }

  #put(outgoing: Frame, handed?: () => void): void {
    this.#queue.add(outgoing, handed)
    this.#stream.kick()
  }

  #commit(checkpoint: number | undefined): void {
    this.#commits.push({ checkpoint, sentMs: this.#nowMs() })
    this.#put(frame('checkpoint'))
  }

  /** A `done` came. @throws Fault */
  #receive(): boolean {
    const commit = this.#commits.shift()
    if (commit === undefined)
      throw new Fault('PROTOCOL', 'the secondary reported a commit that was not asked for')
    const { checkpoint, sentMs } = commit
    if (checkpoint === undefined) {
      assert(this.#answer !== undefined, 'the first commit is sent for the hello')
      this.#accepted = true
      this.#handlers.frame(frame('hello', { payload: this.#answer }))
      // It changed nothing by itself.
      if (!this.closed) this.#handlers.frame(frame('ready'))
    } else {
      const commitUs = Math.round((this.#nowMs() - sentMs) * 1000)
      this.#handlers.frame(frame('done', { position: checkpoint, extent: commitUs }))
    }
    return !this.closed
  }

  #showsLife(): boolean {
    const { progress, busy } = this.#stream
    const moved = progress !== this.#progressSeen
    this.#progressSeen = progress
    return moved || (!busy && this.#commits.length === 0)
  }

  /** Not within the call that asks: the machine is in the middle of a step then. */
  #deliver(arrived: Frame): void {
    process.nextTick(() => {
      if (!this.closed) this.#handlers.frame(arrived)
    })
  }

  #closed(reason: string): void {
    this.#queue.drop()
    if (this.#refused !== undefined) this.#acquaintance.lost = this.#refused
    else if (this.#accepted) {
      const why = `the connection to the blktap2 secondary was lost (${reason}), and nothing tells what it holds now: make the images equal, and start both sides anew`
      this.#acquaintance.lost = why
      if (!this.#closing) this.#handlers.frame(refusal(why))
    }
    this.#handlers.closed(reason)
  }
}

/** Connects to nobody: the answer to the hello is a refusal. @returns gives the attempt up */
function refuse(connected: Parameters<Dial>[0], reason: string): () => void {
  let wanted = true
  process.nextTick(() => {
    if (wanted) connected((handlers) => new RefusedLink(handlers, reason))
  })
  return () => {
    wanted = false
  }
}

class RefusedLink implements Link {
  readonly peer = 'nobody'
  readonly #handlers: LinkHandlers
  readonly #reason: string
  #closed = false

  constructor(handlers: LinkHandlers, reason: string) {
    this.#handlers = handlers
    this.#reason = reason
  }

  get closed(): boolean {
    return this.#closed
  }

  send({ type }: Frame): void {
    if (type !== 'hello') return
    process.nextTick(() => {
      if (!this.#closed) this.#handlers.frame(refusal(this.#reason))
    })
  }

  sendData(_frame: Frame, handed: () => void): void {
    handed()
  }

  // There is nothing to arrive.
  pause(): void {}
  resume(): void {}

  close(reason: string): void {
    if (this.#closed) return
    this.#closed = true
    this.#handlers.closed(reason)
  }
}

function refusal(reason: string): Frame {
  return frame('refuse', { payload: encodeRefusal({ code: 'history', reason, term: 0 }) })
}
