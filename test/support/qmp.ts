/**
 * A QMP client for tests and benchmarks, written from QEMU's protocol description and independent of colotap's own
 * code, so that both colotap and QEMU can be driven with it.
 *
 * Invariant: replies are matched by id; events are kept in the order of their arrival.
 */

import net from 'node:net'
import { createInterface } from 'node:readline'
import type { Scope } from './scope.ts'

export type JsonObject = Readonly<Record<string, unknown>>

/** A command that the server refused. */
class QmpError extends Error {
  override readonly name = 'QmpError'
  readonly errorClass: string

  constructor(command: string, errorClass: string, description: string) {
    super(`${command}: ${description}`)
    this.errorClass = errorClass
  }
}

interface Waiter {
  readonly command: string
  readonly resolve: (value: unknown) => void
  readonly reject: (error: Error) => void
}

export class QmpClient {
  readonly events: JsonObject[] = []
  readonly #socket: net.Socket
  readonly #waiters = new Map<number, Waiter>()
  readonly #eventWatchers = new Set<() => void>()
  #greeted: (() => void) | undefined
  #lastId = 0

  private constructor(socket: net.Socket) {
    this.#socket = socket
    const lines = createInterface({ input: socket }).on('line', (line) => this.#receive(line))
    // The interface repeats the socket's errors, which are heard below.
    lines.on('error', () => undefined)
    socket.on('close', () => this.#fail(new Error('the QMP server closed the connection')))
    socket.on('error', (error) => this.#fail(error))
  }

  /** Connects, awaits the greeting and negotiates. */
  static async connect(scope: Scope, path: string): Promise<QmpClient> {
    const socket = net.connect(path)
    scope.teardown(() => socket.destroy())
    const client = new QmpClient(socket)
    await new Promise<void>((resolve, reject) => {
      client.#greeted = resolve
      socket.once('error', reject)
      socket.once('close', () => reject(new Error(`${path}: closed before the greeting`)))
    })
    await client.execute('qmp_capabilities')
    return client
  }

  /** The command's return value. @throws QmpError */
  execute(command: string, args?: JsonObject): Promise<unknown> {
    const id = ++this.#lastId
    return new Promise((resolve, reject) => {
      if (this.#socket.destroyed) {
        reject(new Error(`${command}: the QMP server is gone`))
        return
      }
      this.#waiters.set(id, { command, resolve, reject })
      this.#socket.write(
        `${JSON.stringify({ execute: command, ...(args === undefined ? {} : { arguments: args }), id })}\n`,
      )
    })
  }

  /** The first event of that name, past or future, whose data passes `wanted`. */
  event(name: string, wanted: (data: JsonObject) => boolean = () => true): Promise<JsonObject> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        for (const event of this.events) {
          const data = (event['data'] ?? {}) as JsonObject
          if (event['event'] !== name || !wanted(data)) continue
          this.#eventWatchers.delete(look)
          resolve(data)
          return
        }
        if (this.#socket.destroyed) reject(new Error(`closed before the event ${name}`))
      }
      this.#eventWatchers.add(look)
      look()
    })
  }

  /** Resolves when more than `count` events have arrived. */
  eventAfter(count: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        const came = this.events.length > count
        if (!came && !this.#socket.destroyed) return
        this.#eventWatchers.delete(look)
        if (came) resolve()
        else reject(new Error('closed before another event'))
      }
      this.#eventWatchers.add(look)
      look()
    })
  }

  close(): void {
    this.#socket.destroy()
  }

  #receive(line: string): void {
    const message = JSON.parse(line) as JsonObject
    if ('QMP' in message) {
      this.#greeted?.()
    } else if ('event' in message) {
      this.events.push(message)
      for (const look of [...this.#eventWatchers]) look()
    } else {
      this.#answer(message)
    }
  }

  #answer(message: JsonObject): void {
    const id = message['id']
    const waiter = typeof id === 'number' ? this.#waiters.get(id) : undefined
    if (waiter === undefined) {
      this.#fail(new Error(`a reply that nobody asked for: ${JSON.stringify(message)}`))
      return
    }
    this.#waiters.delete(id as number)
    const error = message['error'] as { class: string; desc: string } | undefined
    if (error === undefined) waiter.resolve(message['return'])
    else waiter.reject(new QmpError(waiter.command, error.class, error.desc))
  }

  #fail(error: Error): void {
    this.#socket.destroy()
    for (const { reject } of this.#waiters.values()) reject(error)
    this.#waiters.clear()
    for (const look of [...this.#eventWatchers]) look()
  }
}
