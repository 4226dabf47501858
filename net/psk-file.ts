/**
 * Files of pre-shared keys as GnuTLS' psktool writes them and nbdkit and QEMU read them: lines of `username:hexkey`. A name
 * that could not stand there otherwise is written as `#` and its bytes in hexadecimal; other lines with a `#` are comments.
 *
 * Invariants:
 *  - A key has at least 128 bits: what is seen of a handshake can be tried against guessed keys.
 *  - A fault never shows a key.
 */

import { Fault } from '../core/fault.ts'

/** In bytes. The upper limits are those of every OpenSSL that Node comes with. */
const KEY_BYTES = { least: 16, most: 256 }
const LONGEST_USER = 128

const REMEDY = 'make a line with: psktool -u NAME -p FILE'

export type PskKeys = ReadonlyMap<string, Buffer>

/** @throws Fault INVALID that names the file and the line */
export function parsePskFile(text: string, path: string): PskKeys {
  const keys = new Map<string, Buffer>()
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || isComment(line)) continue
    const wrong = addLine(keys, line)
    if (wrong === undefined) continue
    throw new Fault('INVALID', `line ${index + 1} of the file of pre-shared keys ${wrong}`, {
      where: path,
      remedy: REMEDY,
    })
  }
  if (keys.size > 0) return keys
  throw new Fault('INVALID', 'the file of pre-shared keys has no key', {
    where: path,
    remedy: REMEDY,
  })
}

function isComment(line: string): boolean {
  return line.startsWith('#') && !/^#(?:[0-9a-f]{2})+:/i.test(line)
}

/** @returns what is wrong with the line, to follow "line 3 ..." */
function addLine(keys: Map<string, Buffer>, line: string): string | undefined {
  const colon = line.lastIndexOf(':')
  if (colon === -1) return 'is not username:hexkey'
  const user = decodeUser(line.slice(0, colon))
  if (user === undefined) return 'has a name that is not text'
  const wrong = objectionToUser(user)
  if (wrong !== undefined) return wrong
  if (keys.has(user)) return `names "${user}" again`
  const hex = line.slice(colon + 1).trim()
  if (!/^(?:[0-9a-f]{2})+$/i.test(hex)) return `has a key of "${user}" that is not hexadecimal`
  const key = Buffer.from(hex, 'hex')
  if (key.length < KEY_BYTES.least || key.length > KEY_BYTES.most)
    return `has a key of "${user}" with ${key.length} bytes, not ${KEY_BYTES.least} to ${KEY_BYTES.most}`
  keys.set(user, key)
  return undefined
}

function decodeUser(written: string): string | undefined {
  if (!written.startsWith('#')) return written
  try {
    return new TextDecoder('utf8', { fatal: true }).decode(Buffer.from(written.slice(1), 'hex'))
  } catch {
    return undefined
  }
}

function objectionToUser(user: string): string | undefined {
  if (user === '') return 'has no name before the colon'
  if (Buffer.byteLength(user) > LONGEST_USER) return `has a name of more than ${LONGEST_USER} bytes`
  if (/\p{Cc}|\uFFFD/u.test(user)) return 'has a name that is not text'
  return undefined
}
