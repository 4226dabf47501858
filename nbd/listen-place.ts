/**
 * Where clients are accepted, as users write it: an address, a unix socket with a mode, or sockets that systemd opened.
 *
 *   unix:/run/nbd.sock   unix:/run/nbd.sock?mode=0660   tcp:[::]:10809   systemd   systemd:NAME
 */

import { Fault } from '../core/fault.ts'
import { formatListenAddress, parseListenAddress, type ListenAddress } from './address.ts'

/** A socket that is open and bound already, under the number of its descriptor. */
export interface InheritedSocket {
  readonly kind: 'inherited'
  readonly fd: number
  readonly name: string
}

/** Where a server can listen. `mode`: who may connect, as the permissions of the file; the owner alone unless told. */
export type ListenPlace = (ListenAddress & { readonly mode?: number }) | InheritedSocket

/** What a user can ask for: a place, or the sockets of one name, or all of them. */
export type ListenSpec =
  | Exclude<ListenPlace, InheritedSocket>
  | { readonly kind: 'systemd'; readonly name: string | undefined }

/** @throws Fault INVALID when the text is none of these. */
export function parseListenSpec(text: string): ListenSpec {
  if (text === 'systemd') return { kind: 'systemd', name: undefined }
  if (text.startsWith('systemd:')) {
    const name = text.slice('systemd:'.length)
    if (name === '') throw invalid(text, 'write systemd, or systemd:NAME for sockets of one name')
    return { kind: 'systemd', name }
  }
  const question = text.startsWith('unix:') ? text.indexOf('?') : -1
  if (question === -1) return parseListenAddress(text)
  const mode = /^mode=0?([0-7]{3})$/.exec(text.slice(question + 1))?.[1]
  if (mode === undefined) throw invalid(text, 'write unix:PATH?mode=0660, three octal digits')
  return { ...parseListenAddress(text.slice(0, question)), mode: Number.parseInt(mode, 8) }
}

export function formatListenPlace(place: ListenPlace): string {
  return place.kind === 'inherited' ? `systemd:${place.name}` : formatListenAddress(place)
}

function invalid(text: string, remedy: string): Fault {
  return new Fault('INVALID', `not a place to listen: "${text}"`, { remedy })
}
