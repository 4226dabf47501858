/**
 * The connections to a server that are used together, from the first one until one of them is lost.
 *
 * Invariants:
 *  - There are several only where the server says that they see each other's writes, and that a flush covers all.
 *  - When one is lost all are given up: the server may have died, and what it acknowledged on any of them with it.
 */

import { Fault } from '../../core/fault.ts'
import { NbdClient } from '../../nbd/client.ts'
import type { ClientSecurity } from '../../nbd/client-link.ts'
import type { ExportInfo } from '../../nbd/client-handshake.ts'
import { NBD_FLAG_CAN_MULTI_CONN } from '../../nbd/protocol.ts'
import type { NbdTarget } from './target.ts'

export interface SessionOptions {
  readonly target: NbdTarget
  /** How many where the server allows more than one. */
  readonly connections: number
  /** What a connection is encrypted with; asked for each session, so that renewed files count. */
  security(): Promise<ClientSecurity | undefined>
  /** For each connection with its handshake. */
  readonly timeoutMs: number
  /** Ends the opening. */
  readonly signal: AbortSignal
}

export class Session {
  readonly info: ExportInfo
  /** Resolves with the reason when the session is over. */
  readonly lost: Promise<Fault>
  readonly #clients: readonly NbdClient[]

  /** @throws Fault when a connection cannot be made; then none is left */
  static async open(options: SessionOptions): Promise<Session> {
    const { target, connections, timeoutMs, signal } = options
    const security = await options.security()
    const connect = (): Promise<NbdClient> =>
      NbdClient.connect({ ...target, structured: true, security, timeoutMs, signal })
    const first = await connect()
    const more = (first.info.flags & NBD_FLAG_CAN_MULTI_CONN) === 0 ? 0 : connections - 1
    const others = await Promise.allSettled(Array.from({ length: more }, connect))
    const clients = [
      first,
      ...others.flatMap((each) => (each.status === 'fulfilled' ? each.value : [])),
    ]
    const failed = others.find((each) => each.status === 'rejected')
    if (failed === undefined) return new Session(first.info, clients)
    for (const client of clients) client.abandon()
    throw failed.reason
  }

  private constructor(info: ExportInfo, clients: readonly NbdClient[]) {
    this.info = info
    this.#clients = clients
    this.lost = Promise.race(clients.map((client) => client.closed.then(() => client.lost))).then(
      (reason) => {
        this.abandon()
        return reason ?? new Fault('LINK_LOST', 'the connection to the NBD server is closed')
      },
    )
  }

  get connections(): number {
    return this.#clients.length
  }

  /** The connection with the least to do. */
  get client(): NbdClient {
    let [least] = this.#clients as [NbdClient]
    for (const client of this.#clients) if (client.outstanding < least.outstanding) least = client
    return least
  }

  /** Closes all connections at once: what is outstanding fails, and no buffer is used any more. */
  abandon(): void {
    for (const client of this.#clients) client.abandon()
  }

  /** Says goodbye, after what is outstanding. */
  async end(): Promise<void> {
    await Promise.all(this.#clients.map((client) => client.disconnect()))
  }
}
