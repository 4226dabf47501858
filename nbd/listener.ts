/** One listening socket of the NBD server, unix or TCP. */

import net from 'node:net'

import { listenPrivately } from '../net/private-socket.ts'
import { listenOnPort } from '../net/tcp-port.ts'
import type { ListenAddress } from './address.ts'

export interface Listener {
  /** As bound: the port is a real one even where 0 was asked for. */
  readonly address: ListenAddress
  /** Stops accepting; accepted sockets live on. A unix socket's file goes away. */
  close(): Promise<void>
}

/**
 * Binds and listens. Accepted sockets are half-open and paused.
 * @throws Fault IN_USE when somebody serves there, NOT_PERMITTED or IO when the system refuses.
 */
export async function openListener(
  address: ListenAddress,
  accept: (socket: net.Socket) => void,
  onError: (error: Error) => void,
): Promise<Listener> {
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, accept)
  const bound = await bind(server, address)
  // Out of descriptors, say: the listener lives on and accepts again later.
  server.on('error', onError)
  return {
    address: bound.address,
    close: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      await bound.unlink()
      await closed
    },
  }
}

async function bind(
  server: net.Server,
  address: ListenAddress,
): Promise<{ address: ListenAddress; unlink: () => Promise<void> }> {
  if (address.kind === 'unix') {
    const socket = await listenPrivately(server, address.path, 'NBD socket')
    return { address, unlink: () => socket.unlink() }
  }
  const { host, port } = await listenOnPort(server, address, 'NBD port')
  return { address: { kind: 'tcp', host, port }, unlink: () => Promise.resolve() }
}
