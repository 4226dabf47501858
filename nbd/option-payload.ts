/**
 * What the payloads of options say, read without trust: each reader gives what it found, or why it is none. Pure.
 */

import { MAX_STRING } from './protocol.ts'

/** Why a payload is refused: syntax, or a string beyond the protocol's limit. */
export type BadPayload =
  | { readonly kind: 'invalid'; readonly reason: string }
  | { readonly kind: 'tooBig'; readonly reason: string }

export interface InfoQuery {
  readonly kind: 'query'
  readonly name: string
  /** The NBD_INFO types asked for. */
  readonly wanted: ReadonlySet<number>
}

export interface MetaQuery {
  readonly kind: 'query'
  readonly name: string
  readonly queries: readonly string[]
}

const TOO_LONG: BadPayload = {
  kind: 'tooBig',
  reason: `a name or query has at most ${MAX_STRING} bytes`,
}

function invalid(reason: string): BadPayload {
  return { kind: 'invalid', reason }
}

/** INFO and GO: u32 length of the name, the name, u16 count of information requests, each a u16. */
export function readInfoQuery(payload: Buffer): InfoQuery | BadPayload {
  if (payload.length < 6) return invalid('the option is too short')
  const length = payload.readUInt32BE(0)
  if (length > payload.length - 6) return invalid('the name is longer than the option')
  if (length > MAX_STRING) return TOO_LONG
  const count = payload.readUInt16BE(4 + length)
  if (payload.length !== 6 + length + 2 * count)
    return invalid('the information requests do not fill the option')
  const name = readString(payload.subarray(4, 4 + length))
  if (name === undefined) return invalid('the name is not UTF-8 without NUL characters')
  const wanted = new Set<number>()
  for (let index = 0; index < count; index += 1)
    wanted.add(payload.readUInt16BE(6 + length + 2 * index))
  return { kind: 'query', name, wanted }
}

/** LIST and SET_META_CONTEXT: u32 length of the name, the name, u32 count of queries, each a u32 length and a string. */
export function readMetaQuery(payload: Buffer): MetaQuery | BadPayload {
  const strings: string[] = []
  let at = 0
  let count = 1
  for (let index = 0; index < count; index += 1) {
    if (payload.length - at < 4) return invalid('the option is too short')
    const length = payload.readUInt32BE(at)
    at += 4
    if (length > payload.length - at) return invalid('a string is longer than the option')
    if (length > MAX_STRING) return TOO_LONG
    const text = readString(payload.subarray(at, at + length))
    if (text === undefined) return invalid('a string is not UTF-8 without NUL characters')
    strings.push(text)
    at += length
    if (index > 0) continue
    if (payload.length - at < 4) return invalid('the option is too short')
    count += payload.readUInt32BE(at)
    at += 4
  }
  if (at !== payload.length) return invalid('the queries do not fill the option')
  const [name = '', ...queries] = strings
  return { kind: 'query', name, queries }
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** A string of the protocol, or undefined when it is not valid UTF-8 or holds a NUL (section "Values"). */
function readString(bytes: Buffer): string | undefined {
  if (bytes.includes(0)) return undefined
  try {
    return UTF8.decode(bytes)
  } catch {
    return undefined
  }
}
