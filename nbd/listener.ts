/** One listening socket of the NBD server: unix, TCP, or one that systemd opened. */

import net from 'node:net'

import { listenOnDescriptor } from '../net/inherited-socket.ts'
import { listenPrivately } from '../net/private-socket.ts'
import { listenOnPort } from '../net/tcp-port.ts'
import type { ListenPlace } from './listen-place.ts'

export interface Listener {
  /** As bound: the port is a real one even where 0 was asked for. */
  readonly address: ListenPlace
  /** Stops accepting; accepted sockets live on. A unix socket's file goes away. */
  close(): Promise<void>
}

/**
 * Binds and listens, or only listens where the socket is inherited. Accepted sockets are half-open and paused.
 * @throws Fault IN_USE when somebody serves there, INVALID when it is no place for it, NOT_PERMITTED or IO when the system refuses.
 */
export async function openListener(
  address: ListenPlace,
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
  address: ListenPlace,
): Promise<{ address: ListenPlace; unlink: () => Promise<void> }> {
  if (address.kind === 'unix') {
    const socket = await listenPrivately(server, address.path, 'NBD socket', address.mode)
    return { address, unlink: () => socket.unlink() }
  }
  if (address.kind === 'inherited') {
    const bound = await listenOnDescriptor(server, address.fd, 'NBD socket')
    const { tls } = address
    const tcp =
      bound &&
      ({ kind: 'tcp', host: bound.address, port: bound.port, ...(tls && { tls }) } as const)
    return { address: tcp ?? address, unlink: () => Promise.resolve() }
  }
  const { host, port } = await listenOnPort(server, address, 'NBD port')
  return { address: { ...address, host, port }, unlink: () => Promise.resolve() }
}
