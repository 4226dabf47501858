/**
 * The port on which secondaries wait for their primaries. Several groups may share one: the hello names the group.
 *
 * Invariants:
 *  - A connection is a stranger until its hello was understood: it has a deadline, little memory, and no effect on the
 *    groups behind the port.
 *  - Where there are credentials, nothing is read as a frame, and nothing said of the groups, before the other side has
 *    proved itself by them. Only what is wrong with its own credentials is a stranger told.
 *  - Strangers are bounded in number; the oldest makes room.
 */

import { createServer, type Server, type Socket } from 'node:net'

import { Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import { listenOnPort } from '../net/tcp-port.ts'
import type { TransportMode } from '../net/transport.ts'
import { secureAccepted } from '../net/secure-socket.ts'
import type { LinkSecurity } from './dial.ts'
import type { Link, LinkHandlers } from './environment.ts'
import { SocketLink } from './link.ts'
import { encodeRefusal, decodeHello, type Hello } from './machine/handshake.ts'
import { frame, type Frame } from './machine/frame.ts'

const HELLO_DEADLINE_MS = 10_000
const MAX_STRANGERS = 32

/** A group that takes connections whose hello names it. */
export interface LinkTaker {
  /** The link is the taker's from now on, with all that arrives on it. */
  take(link: Link, hello: Hello): LinkHandlers
}

interface Stranger {
  readonly peer: string
  readonly socket: Socket
  readonly deadline: NodeJS.Timeout
  /** Once frames may pass. */
  link: SocketLink | undefined
  /** Who it has proved to be, where there are credentials. */
  identity: string | undefined
}

export class ReplicationListener {
  readonly host: string
  readonly port: number
  readonly #logger: Logger
  readonly #takers = new Map<string, LinkTaker>()
  readonly #strangers = new Set<Stranger>()
  readonly #links = new Set<SocketLink>()
  readonly #server: Server
  readonly #deadlineMs: number
  #security: LinkSecurity | undefined
  #open = false

  /** `deadlineMs`: what a stranger has for the handshake and its hello. */
  constructor(host: string, port: number, logger: Logger, deadlineMs = HELLO_DEADLINE_MS) {
    this.#deadlineMs = deadlineMs
    this.host = host
    this.port = port
    this.#logger = logger
    // Not a byte is read before TLS can read it.
    this.#server = createServer({ pauseOnConnect: true }, (socket) => this.#accept(socket))
  }

  /** @throws Fault when the address cannot be listened on */
  async listen(): Promise<void> {
    await listenOnPort(this.#server, this, 'replication port')
    this.#server.on('error', (error) =>
      this.#logger.error({ error: error.message }, 'replication port error'),
    )
  }

  /** Only who proves itself by these is heard; only before start(). */
  secure(security: LinkSecurity): void {
    this.#security = security
  }

  add(group: string, taker: LinkTaker): void {
    this.#takers.set(group, taker)
  }

  remove(group: string): void {
    this.#takers.delete(group)
  }

  /** From now on connections are heard; before, primaries are sent away to come again. */
  start(): void {
    this.#open = true
  }

  close(): Promise<void> {
    const reason = 'the secondary is shutting down'
    for (const link of this.#links) link.close(reason)
    for (const stranger of this.#strangers) this.#drop(stranger, reason)
    return new Promise((resolve) => {
      this.#server.close(() => resolve())
    })
  }

  #accept(socket: Socket): void {
    if (this.#strangers.size >= MAX_STRANGERS) {
      const [oldest] = this.#strangers
      if (oldest !== undefined) this.#drop(oldest, 'too many connections without a hello')
    }
    const stranger: Stranger = {
      peer: `${socket.remoteAddress ?? 'unknown'}:${socket.remotePort ?? 0}`,
      socket,
      deadline: setTimeout(() => this.#drop(stranger, 'no hello in time'), this.#deadlineMs),
      link: undefined,
      identity: undefined,
    }
    this.#strangers.add(stranger)
    socket.on('error', () => undefined) // 'close' follows, and is heard by whoever has the socket then
    if (!this.#open) this.#drop(stranger, 'the groups are not started yet')
    else if (this.#security === undefined) this.#hear(stranger, socket, 'in-place')
    else void this.#secure(stranger, this.#security)
  }

  async #secure(stranger: Stranger, { credentials, peerName }: LinkSecurity): Promise<void> {
    const material = await credentials.current(this.#logger)
    secureAccepted(
      stranger.socket,
      material,
      { peerName },
      {
        secured: (socket, identity) => {
          if (!this.#strangers.has(stranger)) {
            socket.destroy()
            return
          }
          this.#logger.info({ peer: stranger.peer, identity }, 'a primary has proved itself')
          stranger.identity = identity
          this.#hear(stranger, socket, 'copying')
        },
        failed: (why, socket) => {
          const reason = `TLS: ${why}`
          if (!this.#strangers.has(stranger)) socket?.destroy()
          else if (socket === undefined) this.#drop(stranger, reason)
          else this.#turnAway(stranger, socket, reason)
        },
      },
    )
  }

  /** The client takes the connection for made by now, and would not know why it ends. */
  #turnAway(stranger: Stranger, socket: Socket, reason: string): void {
    const link = this.#link(socket, 'copying', {
      frame: () => undefined,
      closed: () => this.#refused(stranger, reason),
    })
    this.#refuse(link, `the secondary does not accept this side: ${reason}`)
    link.close(reason)
  }

  #hear(stranger: Stranger, socket: Socket, mode: TransportMode): void {
    let owner: LinkHandlers | undefined
    const link = this.#link(socket, mode, {
      frame: (arrived) => {
        if (owner === undefined) owner = this.#greet(stranger, link, arrived)
        else owner.frame(arrived)
      },
      closed: (reason) => {
        if (owner === undefined) this.#refused(stranger, reason)
        else owner.closed(reason)
      },
    })
    stranger.link = link
    socket.resume()
  }

  #link(socket: Socket, mode: TransportMode, handlers: LinkHandlers): SocketLink {
    const link: SocketLink = new SocketLink(
      socket,
      {
        frame: (arrived) => handlers.frame(arrived),
        closed: (reason) => {
          this.#links.delete(link)
          handlers.closed(reason)
        },
      },
      mode,
    )
    this.#links.add(link)
    return link
  }

  #greet(stranger: Stranger, link: SocketLink, arrived: Frame): LinkHandlers {
    if (arrived.type !== 'hello')
      throw new Fault('PROTOCOL', `the first frame is ${arrived.type}, not hello`)
    const hello = decodeHello(arrived.payload)
    this.#forget(stranger)
    const taker = this.#takers.get(hello.group)
    if (taker !== undefined) return taker.take(link, hello)
    const reason = `there is no group "${hello.group}" here; there are: ${[...this.#takers.keys()].join(', ')}`
    this.#refuse(link, reason)
    throw new Fault('REFUSED', reason)
  }

  #refuse(link: SocketLink, reason: string): void {
    const payload = encodeRefusal({ code: 'configuration', reason, term: 0 })
    link.send(frame('refuse', { payload }))
  }

  #drop(stranger: Stranger, reason: string): void {
    if (stranger.link !== undefined) return stranger.link.destroy(reason)
    stranger.socket.destroy()
    this.#refused(stranger, reason)
  }

  #refused(stranger: Stranger, reason: string): void {
    this.#forget(stranger)
    const { peer, identity } = stranger
    const remedy =
      identity === undefined
        ? undefined
        : "see the primary's log: it may not accept the credentials of this side"
    this.#logger.warn({ peer, identity, reason, remedy }, 'replication connection refused')
  }

  #forget(stranger: Stranger): void {
    clearTimeout(stranger.deadline)
    this.#strangers.delete(stranger)
  }
}
