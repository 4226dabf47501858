/**
 * The port on which a secondary waits for its primary over the blktap2 wire. The wire names no group, so there is one.
 *
 * Invariants:
 *  - A connection is a stranger until its first request: it has little memory, and no effect on the group. It has no deadline: an
 *    old primary may connect long before its guest writes, and takes the end of its connection for the secondary's death.
 *  - Strangers are bounded in number; the oldest makes room.
 */

import { createServer, type Server, type Socket } from 'node:net'

import { assert } from '../../core/assert.ts'
import type { Logger } from '../../core/logger.ts'
import { listenOnPort } from '../../net/tcp-port.ts'
import { SecondaryLink, type Blktap2Taker } from './secondary-link.ts'

const MAX_STRANGERS = 32

export class Blktap2Listener {
  readonly host: string
  readonly port: number
  readonly #logger: Logger
  readonly #server: Server
  #taker: Blktap2Taker | undefined
  readonly #strangers = new Set<SecondaryLink>()
  readonly #links = new Set<SecondaryLink>()
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

  /** Names the group behind the port; once. */
  add(_group: string, taker: Blktap2Taker): void {
    assert(this.#taker === undefined, 'there is one group behind a blktap2 port')
    this.#taker = taker
  }

  remove(): void {
    this.#taker = undefined
  }

  /** From now on connections are heard; those that came before wait until now. */
  start(): void {
    this.#open = true
    for (const link of this.#links) link.resume()
  }

  close(): Promise<void> {
    for (const link of this.#links) link.close('the secondary is shutting down')
    return new Promise((resolve) => {
      this.#server.close(() => resolve())
    })
  }

  #accept(socket: Socket): void {
    const taker = this.#taker
    if (taker === undefined) return void socket.destroy()
    if (this.#strangers.size >= MAX_STRANGERS) {
      const [oldest] = this.#strangers
      oldest?.destroy('too many connections without a request')
    }
    const link: SecondaryLink = new SecondaryLink(socket, taker, {
      met: () => this.#strangers.delete(link),
      closed: (reason, refused) => {
        this.#strangers.delete(link)
        this.#links.delete(link)
        if (refused)
          this.#logger.warn({ peer: link.peer, reason }, 'replication connection refused')
      },
    })
    this.#strangers.add(link)
    this.#links.add(link)
    if (!this.#open) link.pause()
  }
}
