/**
 * The QMP door: a unix socket on which any number of clients command the server, each in its own conversation.
 *
 * Invariants:
 *  - A client harms only its own connection, whatever it sends or fails to read.
 *  - At most MAX_CONNECTIONS clients are served at a time; one more is told so and let go.
 *  - A slow command delays no other connection.
 */

import { mkdir } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { dirname } from 'node:path'

import type { Logger } from '../core/logger.ts'
import { listenPrivately, type PrivateSocket } from '../net/private-socket.ts'
import type { ControlContext } from './command.ts'
import type { EventBus } from './events.ts'
import { QmpConnection } from './qmp-connection.ts'
import { QmpSession } from './qmp-session.ts'

export const MAX_CONNECTIONS = 64

/** How long a closing server waits for running commands and for clients to read their replies, in milliseconds. */
const CLOSE_GRACE_MS = 1000

interface QmpServerOptions {
  /** Where the socket is to be. */
  readonly path: string
  readonly context: ControlContext
  readonly events: EventBus
  readonly logger: Logger
}

export class QmpServer {
  readonly #options: QmpServerOptions
  readonly #server: Server
  /** Each connection with the promise of its end. */
  readonly #connections = new Map<QmpConnection, Promise<void>>()
  #socket: PrivateSocket | undefined
  #closing: Promise<void> | undefined

  constructor(options: QmpServerOptions) {
    this.#options = options
    // Half-open: a client may end its side after its last request and still gets the reply.
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket))
  }

  /**
   * Makes the socket, and its folder where only that is missing.
   * @throws Fault when the path cannot be used or a living server has it.
   */
  async listen(): Promise<void> {
    const { path } = this.#options
    // What is wrong with the folder, if anything, shows when the socket is made.
    await mkdir(dirname(path), { mode: 0o700 }).catch(() => undefined)
    this.#socket = await listenPrivately(this.#server, path, 'control socket')
    this.#options.logger.info({ path: this.#socket.path }, 'control socket listens')
  }

  /** Stops accepting, gives running commands and readers a moment, and ends every connection. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    const closed = new Promise<void>((done) => {
      if (this.#server.listening) this.#server.close(() => done())
      else done()
    })
    await this.#socket?.unlink()
    const deadline = setTimeout(() => {
      for (const connection of this.#connections.keys()) connection.abort()
    }, CLOSE_GRACE_MS)
    for (const connection of this.#connections.keys()) connection.finish()
    await Promise.all(this.#connections.values())
    clearTimeout(deadline)
    await closed
  }

  #accept(socket: Socket): void {
    const { context, events, logger } = this.#options
    socket.on('error', (error) => logger.debug({ reason: error.message }, 'control client lost'))
    if (this.#closing !== undefined || this.#connections.size >= MAX_CONNECTIONS) {
      this.#turnAway(socket)
      return
    }
    const connection = new QmpConnection(socket, new QmpSession(context), logger)
    const unsubscribe = events.subscribe((event) => connection.show(event))
    const ended = new Promise<void>((done) => {
      socket.once('close', () => {
        unsubscribe()
        this.#connections.delete(connection)
        done()
      })
    })
    this.#connections.set(connection, ended)
    // Rejects only for a bug of ours, which is to end the process: nobody handles it.
    void connection.converse()
  }

  #turnAway(socket: Socket): void {
    this.#options.logger.warn({ limit: MAX_CONNECTIONS }, 'control connection refused')
    const desc = `no more than ${MAX_CONNECTIONS} control connections are served: close one`
    socket.write(`${JSON.stringify({ error: { class: 'GenericError', desc } })}\r\n`)
    socket.destroySoon()
  }
}
