/** A QMP client for the command line and for tests: one connection, requests answered in order, events as they come. */

import { once } from 'node:events'
import { connect, type Socket } from 'node:net'

import { Fault } from '../core/fault.ts'
import { MiB } from '../core/units.ts'
import { JsonFramer } from './json-framer.ts'

/** Replies and events are lines of at most so many bytes. */
const MAX_MESSAGE = 16 * MiB

/** How long a server may take to say what it is, in milliseconds. */
const GREETING_MS = 5000

/** An event as it arrives; what its data holds is the server's business. */
export interface ReceivedEvent {
  readonly event: string
  readonly data: Readonly<Record<string, unknown>>
  readonly timestamp: { readonly seconds: number; readonly microseconds: number }
}

type Message = Readonly<Record<string, unknown>>

interface Waiting {
  resolve(message: Message): void
  reject(reason: Fault): void
}

export class QmpClient {
  readonly #socket: Socket
  readonly #path: string
  readonly #framer = new JsonFramer(MAX_MESSAGE)
  readonly #waiting: Waiting[] = []
  readonly #onEvent: (event: ReceivedEvent) => void
  /** Resolves when the connection has ended: with the reason, unless close() ended it. */
  readonly ended: Promise<Fault | undefined>
  #failure: Fault | undefined
  #closed = false

  private constructor(socket: Socket, path: string, onEvent: (event: ReceivedEvent) => void) {
    this.#socket = socket
    this.#path = path
    this.#onEvent = onEvent
    socket.on('error', (error) => this.#fail(`the control connection failed: ${error.message}`))
    this.ended = new Promise((done) => {
      socket.on('close', () => {
        this.#fail('the server closed the control connection')
        done(this.#closed ? undefined : this.#failure)
      })
    })
    socket.on('data', (chunk) => this.#receive(chunk))
  }

  /** Connects and negotiates. @throws Fault when nobody listens there, or what listens does not speak QMP. */
  static async connect(
    path: string,
    onEvent: (event: ReceivedEvent) => void = () => undefined,
  ): Promise<QmpClient> {
    const socket = connect(path)
    await once(socket, 'connect').catch((error: unknown) => {
      throw unreachable(path, error)
    })
    const client = new QmpClient(socket, path, onEvent)
    const patience = setTimeout(() => client.#fail('the server did not greet'), GREETING_MS)
    try {
      const greeting = await client.#next()
      if (greeting['QMP'] === undefined) throw refusal(greeting)
      await client.execute('qmp_capabilities')
      return client
    } catch (error) {
      await client.close()
      throw error
    } finally {
      clearTimeout(patience)
    }
  }

  /** @throws Fault REFUSED with the server's words when the command fails; LINK_LOST when no reply came. */
  async execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    const reply = this.#next()
    const request =
      args === undefined ? { execute: command } : { execute: command, arguments: args }
    this.#socket.write(`${JSON.stringify(request)}\n`)
    const message = await reply
    if (message['error'] !== undefined) throw refusal(message)
    return message['return']
  }

  /** Ends the connection; commands still waiting for their reply fail. */
  async close(): Promise<void> {
    this.#closed = true
    this.#socket.destroy()
    await this.ended
  }

  #next(): Promise<Message> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject })
    })
  }

  #receive(chunk: Buffer): void {
    for (const framed of this.#framer.push(chunk)) {
      if (framed.kind === 'refused') return this.#fail(`the server sent ${framed.reason}`)
      const message = parse(framed.text)
      if (message === undefined) return this.#fail('what listens here does not speak QMP')
      if (typeof message['event'] === 'string') this.#onEvent(message as unknown as ReceivedEvent)
      else this.#waiting.shift()?.resolve(message)
    }
  }

  #fail(what: string): void {
    this.#failure ??= new Fault('LINK_LOST', what, { where: this.#path })
    for (const waiting of this.#waiting.splice(0)) waiting.reject(this.#failure)
    this.#socket.destroy()
  }
}

function refusal(message: Message): Fault {
  const error = message['error']
  const desc = isMessage(error) ? error['desc'] : undefined
  return new Fault(
    'REFUSED',
    typeof desc === 'string' ? desc : 'what listens here does not speak QMP',
  )
}

function unreachable(path: string, cause: unknown): Fault {
  const code = cause instanceof Error ? (cause as NodeJS.ErrnoException).code : undefined
  if (code === 'EACCES' || code === 'EPERM') {
    return new Fault('NOT_PERMITTED', 'may not connect to the control socket', {
      where: path,
      remedy: 'run the command as the user that the server runs as',
      cause,
    })
  }
  return new Fault('NOT_FOUND', 'no colotap server answers', {
    where: path,
    remedy: 'start "colotap serve", or name its control socket with --control',
    cause,
  })
}

function parse(text: string): Message | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isMessage(value) ? value : undefined
  } catch {
    return undefined
  }
}

function isMessage(value: unknown): value is Message {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
