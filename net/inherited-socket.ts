/** Listening on a socket that somebody else opened and bound: systemd's socket activation (sd_listen_fds(3)). */

import { once } from 'node:events'
import type { AddressInfo, Server } from 'node:net'

import { asFault } from '../core/fault.ts'

/**
 * Makes `server` listen on the descriptor; gives its TCP address, or undefined where it has none.
 * @throws Fault INVALID when it is no stream socket that can listen.
 */
export async function listenOnDescriptor(
  server: Server,
  fd: number,
  what: string,
): Promise<AddressInfo | undefined> {
  try {
    const listening = once(server, 'listening')
    server.listen({ fd })
    await listening
  } catch (error) {
    throw asFault(error, 'INVALID', `cannot listen on the ${what} that was passed`, {
      where: `descriptor ${fd}`,
      remedy: 'pass stream sockets, unix or TCP: ListenStream= in the socket unit',
    })
  }
  const address = server.address()
  return typeof address === 'object' && address !== null ? address : undefined
}
