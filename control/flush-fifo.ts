/**
 * The checkpoint FIFOs of blktap2's Remus: `remus_NAME` takes flushes, `remus_NAME.msg` gives the answers.
 *
 * Invariants:
 *  - Nobody is waited for: an answer waits in its FIFO until a client reads it, and the next flush throws away what nobody
 *    has read, so that an old `done` is never taken for the answer to a new flush.
 *  - Two servers never share the FIFOs: whoever has the socket `remus_NAME.owner` beside them has them both.
 */

import { closeSync, readSync, writeSync } from 'node:fs'
import { createServer, Socket } from 'node:net'

import type { Logger } from '../core/logger.ts'
import { KiB } from '../core/units.ts'
import { makePrivateFifo, type PrivateFifo } from '../net/private-fifo.ts'
import { listenPrivately, type PrivateSocket } from '../net/private-socket.ts'
import { FlushConversation, type FlushAnswer } from './flush-conversation.ts'

/** What a FIFO holds (pipe(7)). */
const PIPE_SIZE = 64 * KiB

const WHAT = 'checkpoint FIFO'

export class FlushFifo {
  readonly #path: string
  readonly #logger: Logger
  readonly #conversation: FlushConversation
  readonly #guard = createServer((socket) => socket.destroy())
  #owner: PrivateSocket | undefined
  #requests: PrivateFifo | undefined
  #answers: PrivateFifo | undefined
  /** Reads the requests, and closes them. */
  #reader: Socket | undefined

  constructor(path: string, flush: () => Promise<boolean>, logger: Logger) {
    this.#path = path
    this.#logger = logger
    this.#conversation = new FlushConversation({
      begin: () => this.#forgetUnread(),
      flush,
      answer: (answer) => this.#answer(answer),
    })
  }

  /** @throws Fault when a path cannot be used or a living server has it; close() undoes what was done */
  async open(): Promise<void> {
    this.#owner = await listenPrivately(this.#guard, `${this.#path}.owner`, WHAT)
    // First: a client that finds the requests finds the answers too.
    this.#answers = await makePrivateFifo(`${this.#path}.msg`, WHAT)
    this.#requests = await makePrivateFifo(this.#path, WHAT)
    const reader = new Socket({ fd: this.#requests.fd, readable: true, writable: false })
    reader.on('error', (error) =>
      this.#logger.error({ path: this.#path, error: error.message }, 'checkpoint FIFO lost'),
    )
    reader.on('data', (piece: Buffer) => this.#conversation.receive(piece))
    this.#reader = reader
  }

  /** The answer to a flush that still runs is not awaited: its FIFO is going. */
  async close(): Promise<void> {
    await this.#requests?.unlink()
    await this.#answers?.unlink()
    this.#reader?.destroy()
    const answers = this.#answers
    this.#answers = undefined
    if (answers !== undefined) closeSync(answers.fd)
    await this.#owner?.unlink()
    if (this.#guard.listening) this.#guard.close()
  }

  #forgetUnread(): void {
    if (this.#answers === undefined) return
    try {
      readSync(this.#answers.fd, Buffer.alloc(PIPE_SIZE))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') this.#complain(error)
    }
  }

  #answer(answer: FlushAnswer): void {
    if (this.#answers === undefined) return
    try {
      writeSync(this.#answers.fd, answer)
    } catch (error) {
      this.#complain(error)
    }
  }

  #complain(error: unknown): void {
    this.#logger.warn({ path: this.#path, error }, 'the answer to a flush was lost')
  }
}
