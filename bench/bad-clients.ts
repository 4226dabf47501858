/**
 * Crowds of clients that a server must survive and whose cost others must not pay. They speak in raw bytes, and
 * whoever is dropped comes again, as long as the scope lasts.
 */

import net from 'node:net'

import type { Scope } from '../test/support/scope.ts'
import { entering, readRequest } from './nbd-bytes.ts'

const KIB = 1024
const MIB = 1024 * KIB
/** What servers say before the first reply: the greeting, and size and flags of the export. */
const HANDSHAKE_REPLY = 18 + 10
const REPLY_HEADER = 16

export interface Crowd {
  readonly name: string
  /** The most clients that are connected at a time. */
  readonly size: number
  /** Resolves when all are connected for the first time. */
  gather(scope: Scope, socket: string): Promise<void>
}

/** One byte a second from each: half of them never come to the end of the handshake, half are in their requests. */
export const SLOW_CLIENTS: Crowd = {
  name: '2000 slow clients',
  size: 2000,
  async gather(scope, socket) {
    const TURNS_A_SECOND = 50
    const said = Buffer.concat([entering('disk'), ...repeated(readRequest(0, 4 * KIB), 40)])
    const clients: { connection: net.Socket; next: number }[] = []
    await crowd(scope, socket, this.size, (connection, index) => {
      const enters = index % 2 === 0
      if (enters) connection.write(entering('disk'))
      connection.resume()
      clients[index] = { connection, next: enters ? entering('disk').length : 0 }
    })
    let turn = 0
    const timer = setInterval(() => {
      turn = (turn + 1) % TURNS_A_SECOND
      for (let index = turn; index < clients.length; index += TURNS_A_SECOND) {
        const client = clients[index]
        if (client === undefined || client.connection.destroyed) continue
        client.connection.write(said.subarray(client.next, client.next + 1))
        client.next += 1
      }
    }, 1000 / TURNS_A_SECOND)
    scope.teardown(() => clearInterval(timer))
  },
}

/** Each has 16 of the largest reads outstanding; every second one takes what comes, the others take nothing. */
export const LARGEST_REQUESTS: Crowd = {
  name: 'a flood of 32 MiB requests from 8 clients',
  size: 8,
  async gather(scope, socket) {
    const request = readRequest(0, 32 * MIB)
    const answer = REPLY_HEADER + 32 * MIB
    await crowd(scope, socket, this.size, (connection, index) => {
      connection.write(Buffer.concat([entering('disk'), ...repeated(request, 16)]))
      if (index % 2 === 0) return
      let received = -HANDSHAKE_REPLY
      connection.on('data', ({ length }) => {
        const before = Math.max(0, Math.floor(received / answer))
        received += length
        const answered = Math.max(0, Math.floor(received / answer)) - before
        if (answered > 0) connection.write(Buffer.concat(repeated(request, answered)))
      })
    })
  },
}

/** Each asks for 512 KiB, says that it is done, and takes nothing of it. */
export const HALF_OPEN: Crowd = {
  name: '500 half-open connections',
  size: 500,
  async gather(scope, socket) {
    const said = Buffer.concat([entering('disk'), ...repeated(readRequest(0, 128 * KIB), 4)])
    await crowd(scope, socket, this.size, (connection) => connection.end(said))
  },
}

function repeated(bytes: Buffer, times: number): Buffer[] {
  return Array.from({ length: times }, () => bytes)
}

/** Connects `size` clients, a few at a time, and each again when it is dropped. */
async function crowd(
  scope: Scope,
  path: string,
  size: number,
  begin: (connection: net.Socket, index: number) => void,
): Promise<void> {
  const AT_A_TIME = 20
  const connections = new Set<net.Socket>()
  let over = false
  scope.teardown(() => {
    over = true
    for (const connection of connections) connection.destroy()
  })
  const join = (index: number): Promise<void> =>
    new Promise((resolve) => {
      const connection = net.connect({ path, allowHalfOpen: true })
      connections.add(connection)
      connection.once('connect', () => {
        begin(connection, index)
        resolve()
      })
      // Reset by a server that had enough, or not admitted: it comes again as after any other end.
      connection.on('error', () => undefined)
      connection.on('end', () => connection.end())
      connection.once('close', () => {
        connections.delete(connection)
        // Not at once: a server that refuses everybody would be asked without pause.
        if (!over) setTimeout(() => over || void join(index), 100)
        resolve()
      })
    })
  for (let first = 0; first < size; first += AT_A_TIME) {
    const count = Math.min(AT_A_TIME, size - first)
    await Promise.all(Array.from({ length: count }, (_, index) => join(first + index)))
  }
}
