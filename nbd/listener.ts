/**
 * One listening socket. A unix socket that a dead server left behind is replaced; a live one is never taken over.
 */

import { constants } from 'node:fs'
import { chmod, lstat, unlink } from 'node:fs/promises'
import net from 'node:net'

import { Fault, asFault } from '../core/fault.ts'
import { formatListenAddress, type ListenAddress } from './address.ts'

export interface Listener {
  /** As bound: the port is a real one even where 0 was asked for. */
  readonly address: ListenAddress
  /** Stops accepting; accepted sockets live on. A unix socket's file goes away. */
  close(): Promise<void>
}

/** The owner only. */
const SOCKET_MODE = constants.S_IRUSR | constants.S_IWUSR

/**
 * Binds and listens. Accepted sockets are half-open and paused.
 * @throws Fault IN_USE when somebody serves there, NOT_PERMITTED or IO when the system refuses.
 */
export async function openListener(
  address: ListenAddress,
  accept: (socket: net.Socket) => void,
  onError: (error: Error) => void,
): Promise<Listener> {
  if (address.kind === 'unix') await removeStaleSocket(address.path)
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, accept)
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(listenFault(error, address)))
    server.listen(
      address.kind === 'unix' ? { path: address.path } : { host: address.host, port: address.port },
      resolve,
    )
  })
  server.removeAllListeners('error')
  // Out of descriptors, say: the listener lives on and accepts again later.
  server.on('error', onError)
  if (address.kind === 'unix') {
    try {
      await chmod(address.path, SOCKET_MODE)
    } catch (error) {
      server.close()
      throw listenFault(error, address)
    }
  }
  return {
    address: boundAddress(server, address),
    close: () => new Promise((resolve) => server.close(() => resolve())),
  }
}

function boundAddress(server: net.Server, asked: ListenAddress): ListenAddress {
  const bound = server.address()
  if (asked.kind === 'unix' || bound === null || typeof bound === 'string') return asked
  return { kind: 'tcp', host: asked.host, port: bound.port }
}

/** Removes a socket that refuses connections. Anything else at the path stays, and is a fault. */
async function removeStaleSocket(path: string): Promise<void> {
  const where = `unix:${path}`
  let found
  try {
    found = await lstat(path)
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return
    throw asFault(error, 'IO', 'cannot look at the socket path', { where })
  }
  if (!found.isSocket()) {
    throw new Fault('IN_USE', 'the socket path is taken by something that is not a socket', {
      where,
      remedy: 'choose another path or move that file away',
    })
  }
  if (!(await refusesConnections(path))) {
    throw new Fault('IN_USE', 'the socket is in use by a running server', {
      where,
      remedy: 'stop that server or choose another path',
    })
  }
  try {
    await unlink(path)
  } catch (error) {
    if (codeOf(error) !== 'ENOENT')
      throw asFault(error, 'IO', 'cannot remove the stale socket', { where })
  }
}

/** True only where the system says that nobody listens; when in doubt somebody does. */
function refusesConnections(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = net.connect({ path })
    const decide = (refused: boolean): void => {
      probe.destroy()
      resolve(refused)
    }
    probe.once('connect', () => decide(false))
    probe.once('error', (error) =>
      decide(codeOf(error) === 'ECONNREFUSED' || codeOf(error) === 'ENOENT'),
    )
  })
}

function listenFault(error: unknown, address: ListenAddress): Fault {
  const where = formatListenAddress(address)
  const code = codeOf(error)
  if (code === 'EADDRINUSE') {
    return new Fault('IN_USE', 'the address is in use', {
      where,
      remedy: 'stop whoever listens there or choose another address',
      cause: error,
    })
  }
  if (code === 'EACCES' || code === 'EPERM') {
    return new Fault('NOT_PERMITTED', 'the system does not let us listen', {
      where,
      remedy: 'choose an address that this user may bind',
      cause: error,
    })
  }
  return asFault(error, 'IO', 'cannot listen', { where })
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined
}
