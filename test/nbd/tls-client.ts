/** A client of the tests that starts TLS on a raw socket, rightly or not. It shares no code with the server, nor with colotap's client. */

import { readFile } from 'node:fs/promises'
import path from 'node:path'
import tls, { type ConnectionOptions, type TLSSocket } from 'node:tls'

import { parsePskFile } from '../../net/psk-file.ts'
import { CLIENT_FLAGS, RawClient } from './harness.ts'
import { option } from './wire.ts'

export const STARTTLS = option(5)

/** What a client with these files offers; `authority` is whom it trusts. */
export async function certificateOf(
  folder: string,
  authority = folder,
): Promise<ConnectionOptions> {
  const file = (name: string): Promise<Buffer> => readFile(path.join(folder, name))
  return {
    ca: await readFile(path.join(authority, 'ca-cert.pem')),
    cert: await file('client-cert.pem'),
    key: await file('client-key.pem'),
    checkServerIdentity: () => undefined,
  }
}

/** What a client with this user's key offers. */
export async function keyOf(file: string, user: string, key?: Buffer): Promise<ConnectionOptions> {
  const psk = key ?? parsePskFile(await readFile(file, 'utf8'), file).get(user)
  if (psk === undefined) throw new Error(`no key of ${user}`)
  return {
    pskCallback: () => ({ identity: user, psk }),
    ciphers: 'TLS_AES_128_GCM_SHA256:PSK',
    checkServerIdentity: () => undefined,
  }
}

/** Greeting, flags and STARTTLS, which must be granted; the socket is for TLS from then on. */
export async function askForTls(raw: RawClient, before: readonly Buffer[] = []): Promise<void> {
  await raw.take(18)
  raw.send(CLIENT_FLAGS, ...before, STARTTLS)
  for (;;) {
    const { option: of, type, data } = await raw.optionReply()
    if (of !== 5) continue
    if (type !== 1) throw new Error(`STARTTLS is refused: ${type} ${data.toString()}`)
    return
  }
}

/** The handshake of TLS on a socket that it was granted on. @throws what TLS says where it fails */
export function secure(raw: RawClient, options: ConnectionOptions): Promise<RawClient> {
  const socket = raw.release()
  return new Promise((resolve, reject) => {
    const secured: TLSSocket = tls.connect({ ...options, socket })
    secured.on('error', (error: Error) => {
      // Node leaves the socket below open in some cases.
      socket.destroy()
      reject(error)
    })
    secured.on('close', () => reject(new Error('closed in the handshake of TLS')))
    secured.on('secureConnect', () => resolve(new RawClient(secured)))
  })
}
