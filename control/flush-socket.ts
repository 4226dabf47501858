/**
 * The checkpoint socket of blktap2's COLO: a unix stream socket, any number of flushes on each connection.
 *
 * Invariants:
 *  - A client harms only its own connection, whatever it sends or fails to read.
 *  - At most MAX_CONNECTIONS clients are served at a time; one more is let go.
 */

import { createServer, type Server, type Socket } from 'node:net'

import type { Logger } from '../core/logger.ts'
import { KiB } from '../core/units.ts'
import { listenPrivately, type PrivateSocket } from '../net/private-socket.ts'
import { FlushConversation } from './flush-conversation.ts'

const MAX_CONNECTIONS = 16
/** Bytes of answers that a client may leave unread. */
const MAX_BACKLOG = 4 * KiB

/** How long a closing socket waits for the flush that runs, in milliseconds. */
const CLOSE_GRACE_MS = 1000

export class FlushSocket {
  readonly #path: string
  readonly #flush: () => Promise<boolean>
  readonly #logger: Logger
  readonly #server: Server
  readonly #connections = new Map<Socket, FlushConversation>()
  #socket: PrivateSocket | undefined

  constructor(path: string, flush: () => Promise<boolean>, logger: Logger) {
    this.#path = path
    this.#flush = flush
    this.#logger = logger
    // Half-open: a client may end its side after its last flush and still gets the answer.
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket))
  }

  /** @throws Fault when the path cannot be used or a living server has it */
  async open(): Promise<void> {
    this.#socket = await listenPrivately(this.#server, this.#path, 'checkpoint socket')
  }

  async close(): Promise<void> {
    await this.#socket?.unlink()
    if (!this.#server.listening) return
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve())
    })
    const deadline = setTimeout(() => {
      for (const socket of this.#connections.keys()) socket.destroy()
    }, CLOSE_GRACE_MS)
    for (const [socket, conversation] of this.#connections) endAfter(conversation, socket)
    await closed
    clearTimeout(deadline)
  }

  #accept(socket: Socket): void {
    socket.on('error', (error) =>
      this.#logger.debug({ reason: error.message }, 'checkpoint client lost'),
    )
    if (this.#connections.size >= MAX_CONNECTIONS) {
      this.#logger.warn({ limit: MAX_CONNECTIONS }, 'checkpoint connection refused')
      socket.destroy()
      return
    }
    const conversation = new FlushConversation({
      flush: this.#flush,
      answer: (answer) => {
        if (!socket.writable) return
        if (socket.writableLength <= MAX_BACKLOG) socket.write(answer)
        else socket.destroy()
      },
    })
    this.#connections.set(socket, conversation)
    socket.on('data', (piece: Buffer) => conversation.receive(piece))
    socket.on('end', () => endAfter(conversation, socket))
    socket.once('close', () => this.#connections.delete(socket))
  }
}

function endAfter(conversation: FlushConversation, socket: Socket): void {
  void conversation.idle.then(() => socket.destroySoon())
}
