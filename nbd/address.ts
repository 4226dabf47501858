/** Addresses to listen on and to connect to: `unix:PATH` and `tcp:HOST:PORT`. */

import { Fault } from '../core/fault.ts'

export type ListenAddress =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }

/** sockaddr_un holds 108 bytes with the terminator; the system would cut a longer path silently. */
const MAX_UNIX_PATH = 107

/**
 * Reads `unix:/run/colotap.sock`, `tcp:127.0.0.1:10809`, `tcp:[::1]:10809`; port 0 is any free port.
 * @throws Fault INVALID when the text is neither.
 */
export function parseListenAddress(text: string): ListenAddress {
  if (text.startsWith('unix:')) return unixAddress(text.slice('unix:'.length), text)
  const match = /^tcp:(?:\[([0-9a-fA-F:.]+(?:%[\w.-]+)?)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(text)
  const host = match?.[1] ?? match?.[2]
  const port = Number(match?.[3])
  if (host === undefined || !(port <= 65535)) {
    throw new Fault('INVALID', `not a listen address: "${text}"`, {
      remedy: 'write unix:PATH, tcp:HOST:PORT or tcp:[IPV6]:PORT',
    })
  }
  return { kind: 'tcp', host, port }
}

function unixAddress(path: string, text: string): ListenAddress {
  const length = Buffer.byteLength(path)
  if (length === 0 || length > MAX_UNIX_PATH || path.includes('\0')) {
    throw new Fault('INVALID', `not a usable socket path: "${text}"`, {
      remedy: `give a path of 1 to ${MAX_UNIX_PATH} bytes`,
    })
  }
  return { kind: 'unix', path }
}

/** The address as parseListenAddress reads it. */
export function formatListenAddress(address: ListenAddress): string {
  if (address.kind === 'unix') return `unix:${address.path}`
  const host = address.host.includes(':') ? `[${address.host}]` : address.host
  return `tcp:${host}:${address.port}`
}
