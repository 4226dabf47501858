/**
 * The NBD server: listeners, the connections they accept, and an end in order.
 *
 * Invariants:
 *  - At most `limits.connections` sockets are served; one more is accepted and closed at once.
 *  - Memory for payloads and replies comes from the pool alone, shared fairly (memory-share.ts). While somebody waits
 *    for memory, a client that holds some and takes no step for `limits.stallMs` is dropped.
 *  - With `limits.idleMs`, a client that asks for nothing, or does not take its answers, for so long is dropped.
 *  - After close() no device is called any more, unless the deadline passed first.
 */

import type net from 'node:net'

import type { BufferPool } from '../core/buffer-pool.ts'
import { Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import { MiB } from '../core/units.ts'
import { Connection, type ConnectionOptions, type ConnectionStatus } from './connection.ts'
import type { Export, ExportTable } from './export.ts'
import { IdleWatch, type Watch } from './idle-watch.ts'
import { formatListenPlace, type ListenPlace } from './listen-place.ts'
import { loadSecurity, tlsStateOf } from './listener-security.ts'
import { openListener, type Listener } from './listener.ts'
import { MemoryShare } from './memory-share.ts'
import { NEGOTIATION_LIMITS, type NegotiationLimits } from './negotiation.ts'
import type { Window } from './transmission.ts'
import type { TransportMode } from '../net/transport.ts'
import { Wakefulness } from './wakefulness.ts'

export interface ServerLimits {
  /** Sockets served at a time. */
  readonly connections: number
  /** What one connection may have in flight. */
  readonly window: Window
  readonly negotiation: NegotiationLimits
  readonly handshakeMs: number
  readonly lingerMs: number
  /** How long a client may hold memory that others wait for, without a step of its own. */
  readonly stallMs: number
  /** How long a client may take no step while nothing of it is under way; undefined for as long as it likes. */
  readonly idleMs: number | undefined
  /** How long close() waits for requests and clients. */
  readonly closeMs: number
}

const SERVER_LIMITS: ServerLimits = {
  connections: 1000,
  window: { requests: 128, bytes: 64 * MiB },
  negotiation: NEGOTIATION_LIMITS,
  handshakeMs: 10_000,
  lingerMs: 1_000,
  stallMs: 10_000,
  idleMs: undefined,
  closeMs: 10_000,
}

export interface NbdServerOptions {
  readonly exports: ExportTable
  /** Larger than the largest request that is to be served; twice the window for good measure. */
  readonly pool: BufferPool
  readonly logger: Logger
  readonly limits?: Partial<ServerLimits>
  /** How sockets are read; `copying` is for streams that cannot do better, and for tests. */
  readonly transport?: TransportMode
}

export class NbdServer {
  readonly #logger: Logger
  readonly #limits: ServerLimits
  readonly #share: MemoryShare
  readonly #connectionOptions: Omit<ConnectionOptions, 'security'>
  readonly #connections = new Set<Connection>()
  #listeners: Listener[] = []
  #nextId = 1
  #closing: Promise<void> | undefined
  /** Each looks, when a client has gone, whether those that it waits for have. */
  readonly #waiting = new Set<() => void>()
  readonly #watches: readonly IdleWatch<Connection>[]

  constructor({ exports, pool, logger, limits, transport = 'in-place' }: NbdServerOptions) {
    this.#logger = logger
    this.#limits = { ...SERVER_LIMITS, ...limits }
    this.#share = new MemoryShare(pool, this.#limits.connections)
    this.#connectionOptions = {
      exports,
      logger,
      transport,
      wakefulness: new Wakefulness(),
      share: this.#share,
      window: this.#limits.window,
      negotiation: this.#limits.negotiation,
      handshakeMs: this.#limits.handshakeMs,
      lingerMs: this.#limits.lingerMs,
      onClosed: this.#onClosed,
    }
    const { stallMs, idleMs } = this.#limits
    const stalls = this.#watch(stallMs, 'stalled client dropped: others need its memory', {
      applies: (client) => this.#share.contended && client.holdsUpMemory,
      stepsOf: (client) => client.steps,
    })
    this.#watches = [stalls]
    if (idleMs === undefined) return
    const idlers = this.#watch(idleMs, 'idle client dropped', {
      applies: (client) => client.idle,
      // A slow payload is no idleness.
      stepsOf: (client) => client.steps + client.reads,
    })
    this.#watches = [stalls, idlers]
  }

  get connections(): readonly ConnectionStatus[] {
    return Array.from(this.#connections, (connection) => connection.status)
  }

  /** Where clients are accepted. */
  get addresses(): readonly ListenPlace[] {
    return this.#listeners.map((listener) => listener.address)
  }

  /**
   * Accepts clients at one more address; gives it as bound.
   * @throws Fault when that is not possible (listener.ts), its credentials cannot be used, or SHUTDOWN after close().
   */
  async listen(address: ListenPlace): Promise<ListenPlace> {
    this.#refuseWhenClosing()
    const security = await loadSecurity(address.tls)
    const options = { ...this.#connectionOptions, security }
    const accept = (socket: net.Socket): void => this.#accept(socket, options)
    const listener = await openListener(address, accept, (error) => {
      this.#logger.error({ error, listen: formatListenPlace(address) }, 'accepting failed')
    })
    if (this.#closing !== undefined) {
      await listener.close()
      this.#refuseWhenClosing()
    }
    this.#listeners.push(listener)
    for (const watch of this.#watches) watch.start()
    const tls = tlsStateOf(security)
    this.#logger.info({ listen: formatListenPlace(listener.address), tls }, 'NBD listening')
    return listener.address
  }

  /** Stops accepting, lets requests in flight finish, closes every connection; bounded by `closeMs`. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  /**
   * Ends every client of an export that is not offered any more, in order: requests in flight finish, new ones get
   * ESHUTDOWN, then the connection is closed; bounded by `closeMs`.
   */
  dismiss(exported: Export): Promise<void> {
    return this.#end((connection) => connection.uses(exported))
  }

  async #close(): Promise<void> {
    for (const watch of this.#watches) watch.stop()
    const listenersClosed = this.#listeners.map((listener) => listener.close())
    await this.#end(() => true)
    await Promise.all(listenersClosed)
  }

  async #end(concerns: (connection: Connection) => boolean): Promise<void> {
    const concerned = [...this.#connections].filter(concerns)
    for (const connection of concerned) connection.shutDown()
    await this.#goneOrLate(concerned)
    for (const connection of concerned) {
      if (!this.#connections.has(connection)) continue
      this.#logger.warn({ ...connection.status }, 'connection cut at the end of the closing time')
      connection.destroy()
    }
  }

  #watch(
    patienceMs: number,
    message: string,
    watch: Omit<Watch<Connection>, 'drop'>,
  ): IdleWatch<Connection> {
    const drop = (client: Connection): void => {
      this.#logger.warn({ ...client.status }, message)
      client.destroy()
    }
    return new IdleWatch(patienceMs, this.#connections, { ...watch, drop })
  }

  /** Waits until these connections are closed and their requests done, but no longer than `closeMs`. */
  #goneOrLate(connections: readonly Connection[]): Promise<void> {
    return new Promise((resolve) => {
      const late = setTimeout(() => end(), this.#limits.closeMs)
      const look = (): void => {
        if (!connections.some((connection) => this.#connections.has(connection))) end()
      }
      const end = (): void => {
        clearTimeout(late)
        this.#waiting.delete(look)
        resolve()
      }
      this.#waiting.add(look)
      look()
    })
  }

  #refuseWhenClosing(): void {
    if (this.#closing === undefined) return
    throw new Fault('SHUTDOWN', 'the NBD server is closed', { remedy: 'start a new one' })
  }

  #accept(socket: net.Socket, options: ConnectionOptions): void {
    if (this.#closing !== undefined || this.#connections.size >= this.#limits.connections) {
      if (this.#closing === undefined)
        this.#logger.warn({ limit: this.#limits.connections }, 'too many connections, one refused')
      socket.destroy()
      return
    }
    this.#connections.add(new Connection(socket, this.#nextId, options))
    this.#nextId += 1
  }

  readonly #onClosed = (connection: Connection): void => {
    this.#connections.delete(connection)
    for (const watch of this.#watches) watch.forget(connection)
    for (const look of [...this.#waiting]) look()
  }
}
