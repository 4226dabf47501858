/**
 * One client of the QMP socket: reads requests no faster than they are answered, and never waits for it to read.
 *
 * Invariants:
 *  - Held: one chunk of input, one request of at most MAX_REQUEST bytes, and at most MAX_BACKLOG bytes of unsent output
 *    plus one message. A client that lets its output grow over that is dropped.
 *  - Requests are answered in order, each before the next one is looked at.
 */

import type { Socket } from 'node:net'

import type { Logger } from '../core/logger.ts'
import { MiB } from '../core/units.ts'
import type { StampedEvent } from './events.ts'
import { JsonFramer } from './json-framer.ts'
import type { QmpSession } from './qmp-session.ts'

export const MAX_REQUEST = 1 * MiB
export const MAX_BACKLOG = 1 * MiB

export class QmpConnection {
  readonly #socket: Socket
  readonly #session: QmpSession
  readonly #logger: Logger
  readonly #framer = new JsonFramer(MAX_REQUEST)
  #answering = false
  #finishing = false

  constructor(socket: Socket, session: QmpSession, logger: Logger) {
    this.#socket = socket
    this.#session = session
    this.#logger = logger
  }

  /** Serves the client until it leaves. Rejects only for a bug of ours. */
  async converse(): Promise<void> {
    this.#send(this.#session.greeting())
    const chunks = this.#socket.iterator({ destroyOnReturn: false })
    for (;;) {
      let next: IteratorResult<Buffer>
      try {
        next = (await chunks.next()) as IteratorResult<Buffer>
      } catch {
        return // the connection failed; its 'error' listener has said so
      }
      const framed = next.done === true ? this.#framer.finish() : this.#framer.push(next.value)
      for (const each of framed) {
        this.#answering = true
        const reply =
          each.kind === 'text'
            ? await this.#session.answer(each.text)
            : this.#session.refuse(each.reason)
        this.#answering = false
        this.#send(reply)
        if (this.#socket.destroyed) return
        if (this.#finishing) break
      }
      if (next.done === true || this.#finishing) break
    }
    this.#socket.destroySoon()
  }

  show(event: StampedEvent): void {
    const shown = this.#session.show(event)
    if (shown !== undefined) this.#send(shown)
  }

  /** Ends the connection after the reply to the request that runs now, if one does. */
  finish(): void {
    this.#finishing = true
    if (!this.#answering) this.#socket.destroySoon()
  }

  abort(): void {
    this.#socket.destroy()
  }

  #send(text: string): void {
    if (this.#socket.destroyed || this.#socket.writableEnded) return
    if (this.#socket.writableLength > MAX_BACKLOG) {
      const backlog = this.#socket.writableLength
      this.#logger.warn({ backlog }, 'control client dropped: it does not read')
      this.#socket.destroy()
      return
    }
    this.#socket.write(text)
  }
}
