/**
 * The secondary's end of a blktap2 connection, as a Link: requests become frames, frames become answers.
 *
 * Invariants:
 *  - The group hears of a connection with its first whole request: a stranger that says nothing, or something else, has no
 *    effect on it.
 *  - `done` is sent when the group reports a commit, never before; checkpoints are numbered on from the group's last one.
 *  - Signs of life are assumed while the connection is open: an old primary that has nothing to write is silent.
 */

import { randomUUID } from 'node:crypto'
import type { Socket } from 'node:net'

import type { Link, LinkHandlers } from '../environment.ts'
import type { GroupStatus } from '../group.ts'
import { frame, PUNCH, type Frame } from '../machine/frame.ts'
import { decodeRefusal, type Hello } from '../machine/handshake.ts'
import { announcedIn, primaryHello } from './assumed-hello.ts'
import { ByteStream } from './byte-stream.ts'
import { MOST_TAKEN, OP_SIZE, RequestReader, type Request } from './wire.ts'

const NO_RETURN =
  'over the blktap2 wire no primary can come back: make the images equal, and start both sides anew'
/** Refusals for what this side holds: where it comes from is not known of any primary of this wire. */
const OF_HISTORY = ['history', 'split', 'deposed']

const ZEROES = Buffer.alloc(MOST_TAKEN)

/** The group that takes the connection. */
export interface Blktap2Taker {
  status(): GroupStatus
  take(link: Link, hello: Hello): LinkHandlers
}

interface SecondaryLinkEvents {
  /** The first request came: the connection is no stranger any more. */
  met(): void
  /** `refused`: the group never had this connection. */
  closed(reason: string, refused: boolean): void
}

export class SecondaryLink implements Link {
  readonly #taker: Blktap2Taker
  readonly #events: SecondaryLinkEvents
  readonly #stream: ByteStream
  readonly #reader = new RequestReader()
  #handlers: LinkHandlers | undefined
  /** The last checkpoint that the primary has announced. */
  #announced = 0
  /** Answers that are to be sent. */
  #dones = 0
  /** This side holds another primary's data already. */
  #taken = false

  constructor(socket: Socket, taker: Blktap2Taker, events: SecondaryLinkEvents) {
    this.#taker = taker
    this.#events = events
    this.#stream = new ByteStream(socket, {
      fill: (into) => this.#fill(into),
      taken: () => undefined,
      receive: (chunk) => this.#reader.push(chunk, (request) => this.#receive(request)),
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
    if (this.closed) return
    switch (outgoing.type) {
      case 'hello':
        this.#announced = announcedIn(outgoing.payload)
        return
      case 'done':
        this.#dones += 1
        return this.#stream.kick()
      case 'heartbeat':
        return this.#assumeLife()
      case 'refuse':
        // What follows is the end of the connection, which says enough to the other side.
        this.#taken = OF_HISTORY.includes(decodeRefusal(outgoing.payload).code)
        return
      case 'accept':
      case 'complete':
      case 'offer':
      case 'resized':
      case 'withdraw':
      case 'pressure':
      case 'write':
      case 'zero':
      case 'checkpoint':
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
    this.send(outgoing)
    handed()
  }

  pause(): void {
    this.#stream.pause()
  }

  resume(): void {
    this.#stream.resume()
  }

  close(reason: string): void {
    this.#stream.close(reason)
  }

  destroy(reason: string): void {
    this.#stream.destroy(reason)
  }

  #receive(request: Request): boolean {
    const handlers = (this.#handlers ??= this.#greet())
    if (!this.closed) this.#hand(request, handlers)
    return !this.closed
  }

  #greet(): LinkHandlers {
    this.#events.met()
    // Its name is made up for this connection: nothing on the wire tells one peer from another.
    const hello = primaryHello(this.#taker.status(), `blktap2-${randomUUID()}`)
    const handlers = this.#taker.take(this, hello)
    // Both sides hold the same.
    if (!this.closed) handlers.frame(frame('synced'))
    return handlers
  }

  #hand({ op, position, data }: Request, handlers: LinkHandlers): void {
    switch (op) {
      case 'sreq':
        return
      case 'creq':
        this.#announced += 1
        return handlers.frame(frame('checkpoint', { position: this.#announced }))
      case 'wreq':
        if (data.length === 0) return
        // The wire has no zeroes: without this a discarded disk would be one that is full of them.
        if (data.equals(ZEROES.subarray(0, data.length)))
          handlers.frame(frame('zero', { position, extent: data.length, flags: PUNCH }))
        else handlers.frame(frame('write', { position, payload: data }))
        return
    }
  }

  #fill(into: Buffer): number {
    let at = 0
    for (; this.#dones > 0 && at + OP_SIZE <= into.length; at += OP_SIZE) {
      into.write('done', at, 'latin1')
      this.#dones -= 1
    }
    return at
  }

  /** Not within the call that asks: the machine is in the middle of a step then. */
  #assumeLife(): void {
    process.nextTick(() => {
      if (!this.closed) this.#handlers?.frame(frame('heartbeat'))
    })
  }

  #closed(reason: string): void {
    const handlers = this.#handlers
    this.#events.closed(this.#taken ? NO_RETURN : reason, handlers === undefined)
    handlers?.closed(`${reason}; ${NO_RETURN}`)
  }
}
