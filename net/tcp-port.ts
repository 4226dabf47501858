/** Listening on a TCP port, with a fault that says what is wrong where it cannot be had. */

import { once } from 'node:events'
import type { AddressInfo, Server } from 'node:net'

import { formatHostPort, type HostPort } from '../core/address.ts'
import { Fault, asFault } from '../core/fault.ts'

/**
 * Makes `server` listen on `address`; `what` names the port in messages. The address as bound is returned: its port is
 * a real one where 0 was asked for.
 * @throws Fault IN_USE, NOT_PERMITTED or IO when the address cannot be listened on.
 */
export async function listenOnPort(
  server: Server,
  address: HostPort,
  what: string,
): Promise<HostPort> {
  const listening = once(server, 'listening') // rejects with the 'error' event when binding fails
  server.listen({ host: address.host, port: address.port })
  try {
    await listening
  } catch (error) {
    throw listenFault(error, what, formatHostPort(address))
  }
  return { host: address.host, port: (server.address() as AddressInfo).port }
}

function listenFault(error: unknown, what: string, where: string): Fault {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'EADDRINUSE') {
    return new Fault('IN_USE', `the ${what} is in use`, {
      where,
      remedy: 'stop whoever listens there or choose another port',
      cause: error,
    })
  }
  if (code === 'EACCES' || code === 'EPERM') {
    return new Fault('NOT_PERMITTED', `the system does not let us listen on the ${what}`, {
      where,
      remedy: 'choose a port that this user may bind',
      cause: error,
    })
  }
  return asFault(error, 'IO', `cannot listen on the ${what}`, {
    where,
    remedy: 'give an address of this machine',
  })
}
