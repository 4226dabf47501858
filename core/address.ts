/**
 * Network addresses as people write them: `HOST:PORT`, with an IPv6 address in brackets: `[::1]:9000`.
 *
 * Invariant: formatHostPort(parseHostPort(text)) means the same address as `text`.
 */

import { isIP, isIPv4, isIPv6 } from 'node:net'

import { Fault } from './fault.ts'

export interface HostPort {
  /** A name or an address; an IPv6 address without its brackets. */
  readonly host: string
  /** 0 to 65535; 0 asks the system for a free port where one listens. */
  readonly port: number
}

const REMEDY =
  'write HOST:PORT, with an IPv6 address in brackets, such as 192.0.2.7:9000 or [::1]:9000'

/** @throws Fault INVALID when `text` is not HOST:PORT. */
export function parseHostPort(text: string): HostPort {
  const match = /^(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5})$/.exec(text)
  if (match === null) throw new Fault('INVALID', `not an address: "${text}"`, { remedy: REMEDY })
  const [, bracketed, plain, digits] = match
  const host = bracketed ?? plain ?? ''
  const port = Number(digits)
  const wrong = objection(host, bracketed !== undefined, port)
  if (wrong !== undefined) {
    throw new Fault('INVALID', `not an address: "${text}": ${wrong}`, { remedy: REMEDY })
  }
  return { host, port }
}

export function formatHostPort({ host, port }: HostPort): string {
  return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`
}

/**
 * Whether traffic to or from `host` stays on this machine. A name other than `localhost` counts as outside: what it
 * resolves to can change after it was checked.
 */
export function isLoopback(host: string): boolean {
  if (isIPv4(host)) return host.startsWith('127.')
  if (isIPv6(host)) return isLoopbackIPv6(host)
  return host.toLowerCase() === 'localhost'
}

function objection(host: string, bracketed: boolean, port: number): string | undefined {
  if (host === '') return 'the host is empty'
  if (bracketed && !isIPv6(host)) return `"${host}" is not an IPv6 address`
  if (port > 65535) return `port ${port} is beyond 65535`
  if (isIP(host) === 0 && !/^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?\.?$/.test(host)) {
    return `"${host}" is not a host name`
  }
  if (/^[\d.]+$/.test(host) && !isIPv4(host)) return `"${host}" is not an IPv4 address`
  return undefined
}

/** ::1 in any spelling, and IPv4's loopback mapped into IPv6 (RFC 4291, sections 2.5.3 and 2.5.5.2). */
function isLoopbackIPv6(host: string): boolean {
  const canonical = new URL(`http://[${host.replace(/%.*$/, '')}]/`).hostname
  return canonical === '[::1]' || /^\[::ffff:7f[0-9a-f]{2}:[0-9a-f]{1,4}\]$/.test(canonical)
}
