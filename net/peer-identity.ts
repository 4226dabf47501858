/**
 * Who the other side of an encrypted connection has proved to be, in a form that rules can be compared with.
 *
 * Invariant: a name counts only where there is no doubt about it: of several common names in a subject none does.
 */

import type { X509Certificate } from 'node:crypto'

export type PeerIdentity =
  | {
      readonly kind: 'certificate'
      readonly commonName: string | undefined
      readonly subject: DistinguishedName
    }
  /** The holder of a pre-shared key. */
  | { readonly kind: 'key'; readonly user: string }
  /** Encrypted, but nothing was proved. */
  | { readonly kind: 'nobody' }

/**
 * A subject's name in one spelling, the same for everything that means the same: relative names in the order of RFC 4514, the
 * most specific first. For comparison, not for people.
 */
export type DistinguishedName = string & { readonly brand: 'DistinguishedName' }

/** One `type=value`; the type in lower case. */
type Attribute = readonly [type: string, value: string]

export function certificateIdentity({ subject }: X509Certificate): PeerIdentity {
  // Node writes a line for each relative name, the most general first, escaped as RFC 4514 has it and without control
  // characters, so that no value can pass for a line of its own. An empty subject is undefined, whatever its type says.
  const lines = (subject as string | undefined)?.split('\n').reverse() ?? []
  const names = lines.map((line) => relativeName(line) ?? [])
  const common = names.flat().filter(([type]) => type === 'cn')
  return {
    kind: 'certificate',
    commonName: common.length === 1 ? common[0]?.[1] : undefined,
    subject: spelling(names),
  }
}

/** Reads `CN=backup,O=Example` (RFC 4514); undefined when it is none. */
export function parseDistinguishedName(text: string): DistinguishedName | undefined {
  const names = splitUnescaped(text, ',').map(relativeName)
  return names.every((name) => name !== undefined) ? spelling(names) : undefined
}

function spelling(names: readonly (readonly Attribute[])[]): DistinguishedName {
  // Attributes of one relative name are a set.
  return JSON.stringify(names.map((name) => name.map(([t, v]) => `${t}=${v}`).sort())) as never
}

function relativeName(text: string): Attribute[] | undefined {
  const attributes = splitUnescaped(text, '+').map(attribute)
  return attributes.every((each) => each !== undefined) ? attributes : undefined
}

function attribute(text: string): Attribute | undefined {
  const match = /^\s*([a-zA-Z][\w.-]*|\d+(?:\.\d+)*)\s*=(.*)$/s.exec(text)
  const [, type, written] = match ?? []
  if (type === undefined || written === undefined) return undefined
  const value = unescape(trimUnescaped(written))
  return value === undefined ? undefined : [type.toLowerCase(), value]
}

/** The parts of `text` between separators that no backslash stands before. */
function splitUnescaped(text: string, separator: string): string[] {
  const parts: string[] = []
  let start = 0
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === '\\') at += 1
    else if (text[at] === separator) {
      parts.push(text.slice(start, at))
      start = at + 1
    }
  }
  return [...parts, text.slice(start)]
}

/** Without the spaces around it, but with a last one that is escaped. */
function trimUnescaped(text: string): string {
  const trimmed = text.trim()
  const backslashes = /\\*$/.exec(trimmed)?.[0].length ?? 0
  return backslashes % 2 === 1 && text.trimStart().length > trimmed.length ? `${trimmed} ` : trimmed
}

/** RFC 4514, section 2.4: a backslash stands before the character itself, or before a byte in hexadecimal. */
function unescape(written: string): string | undefined {
  const bytes: Buffer[] = []
  for (const [token] of written.matchAll(/\\[0-9a-fA-F]{2}|\\?[^\\]|\\\\|\\$/gsu)) {
    if (token === '\\') return undefined
    const hex = /^\\([0-9a-fA-F]{2})$/.exec(token)?.[1]
    if (hex !== undefined) bytes.push(Buffer.from(hex, 'hex'))
    else bytes.push(Buffer.from(token.startsWith('\\') ? token.slice(1) : token))
  }
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(Buffer.concat(bytes))
  } catch {
    return undefined
  }
}
