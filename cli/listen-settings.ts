/** Where `colotap serve` listens for NBD clients, and who could reach that. */

import { isDeepStrictEqual } from 'node:util'

import { isLoopback } from '../core/address.ts'
import { Fault } from '../core/fault.ts'
import type { ClientRule } from '../nbd/access.ts'
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
  const used = new Map<InheritedSocket, InheritedSocket>()
  for (const spec of specs) {
    if (spec.kind !== 'systemd') {
      places.push(spec)
      continue
    }
    const { name, tls } = spec
    const named = inherited.filter((socket) => name === undefined || socket.name === name)
    if (named.length === 0) throw notPassed(name, inherited)
    for (const socket of named) {
      const before = used.get(socket)
      if (before !== undefined && !isDeepStrictEqual(before.tls, tls)) throw toldTwice(socket)
      used.set(socket, { ...socket, ...(tls && { tls }) })
    }
  }
  const unused = inherited.find((socket) => !used.has(socket))
  if (unused !== undefined) {
    throw new Fault('INVALID', `systemd passes a socket on which nothing listens`, {
      where: formatListenPlace(unused),
      remedy: `listen on systemd, or systemd:${unused.name}, or take it out of the socket unit`,
    })
  }
  return [...places, ...used.values()]
}

function toldTwice(socket: InheritedSocket): Fault {
  return new Fault('INVALID', 'a socket of systemd is to be listened on with and without TLS', {
    where: formatListenPlace(socket),
    remedy: 'say it once, or with the same tls settings',
  })
}

function notPassed(name: string | undefined, inherited: readonly InheritedSocket[]): Fault {
  const what = name === undefined ? 'no socket' : `no socket named "${name}"`
  const names = inherited.map((socket) => socket.name).join(', ')
  return new Fault('NOT_FOUND', `systemd passed ${what}`, {
    remedy:
      names === '' ? 'start the service through its socket unit' : `it passed these: ${names}`,
  })
}

/** @throws Fault NOT_PERMITTED when others than this machine could connect without encryption, or without a proof of who they are */
export function refuseExposure(place: ListenPlace): void {
  if (place.kind !== 'tcp' || isLoopback(place.host)) return
  const { tls } = place
  if (tls?.required === true && !tls.anybody) return
  const [what, remedy] =
    tls === undefined
      ? [
          'without encryption',
          'give ?tls-creds=DIR or ?tls-psk=FILE, listen on loopback or a unix socket behind a tunnel',
        ]
      : tls.required
        ? ['to anybody', 'leave out tls-verify=off']
        : ['without encryption to who wants it so', 'leave out tls=optional']
  throw new Fault('NOT_PERMITTED', `NBD would be served beyond this machine ${what}`, {
    where: formatListenPlace(place),
    remedy: `${remedy}, or accept the risk with --insecure`,
  })
}

/**
 * @param clients whom an export is for
 * @throws Fault INVALID when none of them could prove it at any of the places
 */
export function refuseUnreachable(
  exportName: string,
  clients: readonly ClientRule[],
  places: readonly ListenPlace[],
): void {
  const provable = new Set(
    places.map(({ tls }) => (tls?.anybody === true ? 'none' : tls?.source.kind)),
  )
  if (clients.some(({ kind }) => provable.has(kind === 'psk' ? 'psk' : 'x509'))) return
  throw new Fault('INVALID', 'no client that the export allows could prove itself', {
    where: `export "${exportName}"`,
    remedy: 'listen with tls-creds=DIR for cn: and dn:, or with tls-psk=FILE for psk:',
  })
}
