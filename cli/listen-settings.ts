/** Where `colotap serve` listens for NBD clients, and who could reach that. */

import { isLoopback } from '../core/address.ts'
import { Fault } from '../core/fault.ts'
import {
  formatListenPlace,
  type InheritedSocket,
  type ListenPlace,
  type ListenSpec,
} from '../nbd/listen-place.ts'

/**
 * The places that were asked for, sockets of systemd among them, each once.
 * @throws Fault when a socket is asked for that was not passed, or passed and not asked for: its clients would hang
 */
export function listenPlaces(
  specs: readonly ListenSpec[],
  inherited: readonly InheritedSocket[],
): ListenPlace[] {
  const places: ListenPlace[] = []
  const used = new Set<InheritedSocket>()
  for (const spec of specs) {
    if (spec.kind !== 'systemd') {
      places.push(spec)
      continue
    }
    const named = inherited.filter(({ name }) => spec.name === undefined || name === spec.name)
    if (named.length === 0) throw notPassed(spec.name, inherited)
    for (const socket of named) used.add(socket)
  }
  const unused = inherited.find((socket) => !used.has(socket))
  if (unused !== undefined) {
    throw new Fault('INVALID', `systemd passes a socket on which nothing listens`, {
      where: formatListenPlace(unused),
      remedy: `listen on systemd, or systemd:${unused.name}, or take it out of the socket unit`,
    })
  }
  return [...places, ...used]
}

function notPassed(name: string | undefined, inherited: readonly InheritedSocket[]): Fault {
  const what = name === undefined ? 'no socket' : `no socket named "${name}"`
  const names = inherited.map((socket) => socket.name).join(', ')
  return new Fault('NOT_FOUND', `systemd passed ${what}`, {
    remedy:
      names === '' ? 'start the service through its socket unit' : `it passed these: ${names}`,
  })
}

/** @throws Fault NOT_PERMITTED when others than this machine could connect without encryption */
export function refuseExposure(place: ListenPlace): void {
  if (place.kind !== 'tcp' || isLoopback(place.host)) return
  throw new Fault('NOT_PERMITTED', 'NBD would be served beyond this machine without encryption', {
    where: formatListenPlace(place),
    remedy:
      'listen on loopback or a unix socket behind a tunnel, or accept the risk with --insecure',
  })
}
