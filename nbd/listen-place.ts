/**
 * Where clients are accepted, as users write it: an address, or sockets that systemd opened, and what is demanded there.
 *
 *   unix:/run/nbd.sock   unix:/run/nbd.sock?mode=0660   tcp:[::]:10809   systemd   systemd:NAME
 *   tcp:192.0.2.7:10809?tls-creds=/etc/colotap/tls   unix:/run/nbd.sock?tls-psk=/etc/colotap/keys.psk&tls=optional
 */

import { resolve } from 'node:path'

import { Fault } from '../core/fault.ts'
import { formatListenAddress, parseListenAddress, type ListenAddress } from './address.ts'
import type { TlsSettings } from './listener-security.ts'

interface Secured {
  /** Absent where TLS is not offered. */
  readonly tls?: TlsSettings
}

/** A socket that is open and bound already, under the number of its descriptor. */
export interface InheritedSocket extends Secured {
  readonly kind: 'inherited'
  readonly fd: number
  readonly name: string
}

/** Where a server can listen. `mode`: who may connect, as the permissions of the file; the owner alone unless told. */
export type ListenPlace = (ListenAddress & Secured & { readonly mode?: number }) | InheritedSocket

/** What a user can ask for: a place, or the sockets of one name, or all of them. */
export type ListenSpec =
  | Exclude<ListenPlace, InheritedSocket>
  | (Secured & { readonly kind: 'systemd'; readonly name: string | undefined })

const SETTINGS = ['mode', 'tls', 'tls-creds', 'tls-psk', 'tls-verify']

type Settings = ReadonlyMap<string, string>

/** @throws Fault INVALID when the text is none of these. */
export function parseListenSpec(text: string): ListenSpec {
  const question = text.indexOf('?')
  const place = question === -1 ? text : text.slice(0, question)
  const settings: Settings =
    question === -1 ? new Map() : readSettings(text, text.slice(question + 1))
  const mode = modeOf(text, settings)
  const tls = tlsOf(text, settings)
  const spec = parsePlace(text, place)
  if (mode !== undefined && spec.kind !== 'unix')
    throw invalid(text, 'mode= is for a socket that colotap makes: unix:PATH?mode=0660')
  return { ...spec, ...(mode !== undefined && { mode }), ...(tls && { tls }) }
}

function parsePlace(text: string, place: string): ListenSpec {
  if (place === 'systemd') return { kind: 'systemd', name: undefined }
  if (!place.startsWith('systemd:')) return parseListenAddress(place)
  const name = place.slice('systemd:'.length)
  if (name === '') throw invalid(text, 'write systemd, or systemd:NAME for sockets of one name')
  return { kind: 'systemd', name }
}

/** `key=value&…`; `%` and `&` in a value are percent-encoded. */
function readSettings(text: string, written: string): Settings {
  const settings = new Map<string, string>()
  for (const setting of written.split('&')) {
    const [, key = '', encoded = ''] = /^([^=]*)=(.*)$/s.exec(setting) ?? []
    if (!SETTINGS.includes(key)) throw invalid(text, `the settings are ${SETTINGS.join('=, ')}=`)
    if (encoded === '' || settings.has(key)) throw invalid(text, `give ${key}=VALUE once`)
    settings.set(key, decode(text, encoded))
  }
  return settings
}

function decode(text: string, encoded: string): string {
  try {
    return decodeURIComponent(encoded)
  } catch {
    throw invalid(text, 'write a % as %25')
  }
}

function modeOf(text: string, settings: Settings): number | undefined {
  const written = settings.get('mode')
  if (written === undefined) return undefined
  const digits = /^0?([0-7]{3})$/.exec(written)?.[1]
  if (digits !== undefined) return Number.parseInt(digits, 8)
  throw invalid(text, 'write unix:PATH?mode=0660, three octal digits')
}

function tlsOf(text: string, settings: Settings): TlsSettings | undefined {
  const directory = settings.get('tls-creds')
  const file = settings.get('tls-psk')
  const tls = choice(text, settings, 'tls', ['require', 'optional'])
  const verify = choice(text, settings, 'tls-verify', ['on', 'off'])
  if (directory !== undefined && file !== undefined)
    throw invalid(text, 'tls-creds= and tls-psk= exclude each other')
  if (verify !== undefined && directory === undefined)
    throw invalid(text, 'tls-verify= is about certificates, which need tls-creds=DIR')
  const common = { required: tls !== 'optional', anybody: verify === 'off' }
  if (directory !== undefined)
    return { source: { kind: 'x509', directory: resolve(directory) }, ...common }
  if (file !== undefined)
    return { source: { kind: 'psk', file: resolve(file), user: undefined }, ...common }
  if (tls !== undefined) throw invalid(text, 'tls= needs tls-creds=DIR or tls-psk=FILE')
  return undefined
}

function choice(
  text: string,
  settings: Settings,
  key: string,
  values: readonly string[],
): string | undefined {
  const value = settings.get(key)
  if (value === undefined || values.includes(value)) return value
  throw invalid(text, `write ${values.map((each) => `${key}=${each}`).join(' or ')}`)
}

export function formatListenPlace(place: ListenPlace): string {
  return place.kind === 'inherited' ? `systemd:${place.name}` : formatListenAddress(place)
}

function invalid(text: string, remedy: string): Fault {
  return new Fault('INVALID', `not a place to listen: "${text}"`, { remedy })
}
