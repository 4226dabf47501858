/**
 * The port on which secondaries wait for their primaries. Several groups may share one: the hello names the group.
 *
 * Invariants:
 *  - A connection is a stranger until its hello was understood: it has a deadline, little memory, and no effect on the
 *    groups behind the port.
 *  - Strangers are bounded in number; the oldest makes room.
 */

import { createServer, type Server, type Socket } from 'node:net'

import { Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import { listenOnPort } from '../net/tcp-port.ts'
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
  readonly link: SocketLink
  readonly deadline: NodeJS.Timeout
}

export class ReplicationListener {
  readonly host: string
  readonly port: number
  readonly #logger: Logger
  readonly #takers = new Map<string, LinkTaker>()
  readonly #strangers = new Set<Stranger>()
  readonly #links = new Set<SocketLink>()
  readonly #server: Server
  #open = false

  constructor(host: string, port: number, logger: Logger) {
    this.host = host
    this.port = port
    this.#logger = logger
    this.#server = createServer((socket) => this.#accept(socket))
  }

  /** @throws Fault when the address cannot be listened on */
  async listen(): Promise<void> {
    await listenOnPort(this.#server, this, 'replication port')
    this.#server.on('error', (error) =>
      this.#logger.error({ error: error.message }, 'replication port error'),
    )
  }

  add(group: string, taker: LinkTaker): void {
    this.#takers.set(group, taker)
  }

  /** From now on connections are heard; before, primaries are sent away to come again. */
  start(): void {
    this.#open = true
  }

  close(): Promise<void> {
    for (const link of this.#links) link.close('the secondary is shutting down')
    return new Promise((resolve) => {
      this.#server.close(() => resolve())
    })
  }

  #accept(socket: Socket): void {
    if (this.#strangers.size >= MAX_STRANGERS) {
      const [oldest] = this.#strangers
      oldest?.link.destroy('too many connections without a hello')
    }
    let owner: LinkHandlers | undefined
    const link = new SocketLink(socket, {
      frame: (arrived) => {
        if (owner === undefined) owner = this.#greet(stranger, arrived)
        else owner.frame(arrived)
      },
      closed: (reason) => {
        this.#links.delete(link)
        this.#forget(stranger)
        if (owner === undefined)
          this.#logger.warn({ peer: link.peer, reason }, 'replication connection refused')
        else owner.closed(reason)
      },
    })
    const deadline = setTimeout(() => link.destroy('no hello in time'), HELLO_DEADLINE_MS)
    const stranger: Stranger = { link, deadline }
    this.#strangers.add(stranger)
    this.#links.add(link)
    if (!this.#open) link.destroy('the groups are not started yet')
  }

  #greet(stranger: Stranger, arrived: Frame): LinkHandlers {
    if (arrived.type !== 'hello')
      throw new Fault('PROTOCOL', `the first frame is ${arrived.type}, not hello`)
    const hello = decodeHello(arrived.payload)
    this.#forget(stranger)
    const taker = this.#takers.get(hello.group)
    if (taker !== undefined) return taker.take(stranger.link, hello)
    const reason = `there is no group "${hello.group}" here; there are: ${[...this.#takers.keys()].join(', ')}`
    stranger.link.send(
      frame('refuse', { payload: encodeRefusal({ code: 'configuration', reason, term: 0 }) }),
    )
    throw new Fault('REFUSED', reason)
  }

  #forget(stranger: Stranger): void {
    clearTimeout(stranger.deadline)
    this.#strangers.delete(stranger)
  }
}
