/**
 * A connected socket made an encrypted and mutually authenticated one, on either side. Nothing that arrives is handed on
 * before the other side has proved itself.
 *
 * Invariants:
 *  - Each call ends in exactly one call of its outcome, whatever happens to the socket; destroying the socket is how
 *    the caller gives up.
 *  - `secured` is only called for a peer that was authenticated by the credentials, and by its name where one is expected;
 *    or for a client of a server that was told to demand nothing.
 *  - No error event of either socket is left without a listener, from the first moment to the last.
 */

import type { Socket } from 'node:net'
import { isIP } from 'node:net'
import {
  checkServerIdentity,
  connect,
  createServer,
  type ConnectionOptions,
  type DetailedPeerCertificate,
  type PeerCertificate,
  type TLSSocket,
} from 'node:tls'

import type { Material } from './credentials.ts'
import { certificateIdentity, type PeerIdentity } from './peer-identity.ts'
import { describeTlsFailure, SPEAKS_NO_TLS } from './tls-failure.ts'

export interface SecureOutcome {
  /** Who the other side has proved to be: `identity` for the log, `who` for rules. */
  secured(socket: TLSSocket, identity: string, who: PeerIdentity): void
  /**
   * `reason` is half a sentence about the other side. Where it could be encrypted but not authenticated, `socket` is still
   * open, and the callee's to close: a server can tell a client on it why it is refused, and must tell it nothing else.
   */
  failed(reason: string, socket?: TLSSocket): void
}

/** Of Diffie-Hellman, where a server of TLS 1.2 chooses it. */
const LEAST_DH_BITS = 2048

/** A record with a fatal alert, protocol_version (RFC 8446, sections 5.1 and 6). */
const PROTOCOL_VERSION_ALERT = Buffer.from([21, 3, 1, 0, 2, 2, 70])

const SHOWED_CERTIFICATE = 'it shows a certificate, and this side has a pre-shared key'

/** What a client must prove. A pre-shared key it must have in any case. */
export interface ClientDemand {
  /** A name that the client's certificate must have; any of the authority's by default. */
  readonly peerName?: string | undefined
  /** Ask for no certificate, and look at none. */
  readonly anybody?: boolean
}

/** The accepting side. */
export function secureAccepted(
  raw: Socket,
  material: Material,
  { peerName, anybody = false }: ClientDemand,
  outcome: SecureOutcome,
): void {
  const settle = once(outcome)
  raw.on('error', ignore)
  let asked: string | undefined
  // A TLS server of its own for each connection, which never listens: only a server verifies certificates in Node, and
  // only so is it known whose handshake an error belongs to. Its keys for session tickets are its own as well.
  const server = createServer({
    ...material.context,
    // Verified below, so that the log can say why, and the client be told.
    requestCert: material.kind === 'x509' && !anybody,
    rejectUnauthorized: false,
    ...(material.kind === 'psk' && {
      pskCallback: (_: TLSSocket, identity: string) => {
        asked = identity
        return material.keys.get(identity) ?? null
      },
    }),
  })
  server.on('tlsClientError', (error) => {
    const reason = describeTlsFailure(error)
    // OpenSSL ends such a connection without a word. An alert is what tells the other side what it has met.
    if (reason === SPEAKS_NO_TLS && raw.writable) raw.write(PROTOCOL_VERSION_ALERT)
    settle.failed(
      asked === undefined ? reason : `${reason} (it says it is "${asked.slice(0, 128)}")`,
    )
  })
  server.on('secureConnection', (socket) => {
    socket.on('error', ignore)
    if (material.kind === 'psk') {
      const user = asked ?? ''
      return settle.secured(socket, `user "${user}"`, { kind: 'key', user })
    }
    if (anybody) return settle.secured(socket, 'anybody', { kind: 'nobody' })
    const certificate = peerCertificate(socket)
    const objection = objectionToClient(socket, certificate, peerName)
    if (objection !== undefined) settle.failed(objection, socket)
    else settle.secured(socket, describeCertificate(certificate), identityOf(socket))
  })
  if (raw.destroyed) settle.failed('it ended the connection before it was secured')
  else server.emit('connection', raw)
}

/** The connecting side. `peerName`: the name that the server's certificate must have. */
export function secureDialled(
  raw: Socket,
  material: Material,
  peerName: string,
  outcome: SecureOutcome,
): void {
  const settle = once(outcome)
  raw.on('error', ignore)
  if (raw.destroyed) return settle.failed('it ended the connection before it was secured')
  const socket = connect({
    ...material.context,
    ...identityOptions(material, peerName),
    socket: raw,
    rejectUnauthorized: true,
    minDHSize: LEAST_DH_BITS,
  })
  socket.on('error', (error: Error) => settle.failed(describeServerFailure(error, material.kind)))
  socket.on('close', () => settle.failed('it ended the connection before it was secured'))
  socket.on('secureConnect', () => {
    const certificate = peerCertificate(socket)
    const identity =
      material.kind === 'psk' ? 'the holder of the same key' : describeCertificate(certificate)
    settle.secured(socket, identity, identityOf(socket))
  })
}

function identityOptions(material: Material, peerName: string): ConnectionOptions {
  if (material.kind === 'x509')
    return {
      checkServerIdentity: (_, certificate) => checkServerIdentity(peerName, certificate),
      // RFC 6066, section 3: an address is not a server name.
      ...(isIP(peerName) === 0 && { servername: peerName }),
    }
  const [user] = material.keys
  return {
    pskCallback: () => (user === undefined ? null : { identity: user[0], psk: user[1] }),
    // The key is the proof. A server that shows a certificate instead has not proved that it knows the key.
    checkServerIdentity: (_, certificate) =>
      Object.keys(certificate).length === 0 ? undefined : new Error(SHOWED_CERTIFICATE),
  }
}

/** Without a key in common, a server shows a certificate, which is nothing that would be judged here. */
function describeServerFailure(error: Error, kind: Material['kind']): string {
  const reason = describeTlsFailure(error)
  return kind === 'psk' && reason.startsWith('its certificate') ? SHOWED_CERTIFICATE : reason
}

function objectionToClient(
  socket: TLSSocket,
  certificate: PeerCertificate | undefined,
  peerName: string | undefined,
): string | undefined {
  if (certificate === undefined) return 'it showed no certificate'
  const who = describeCertificate(certificate)
  if (!socket.authorized) {
    // On a server it is the code as text, though typed as an error.
    const code = String(socket.authorizationError)
    return `${describeTlsFailure(Object.assign(new Error(code), { code }))} (${who})`
  }
  const wrongName = peerName === undefined ? undefined : checkServerIdentity(peerName, certificate)
  return wrongName === undefined ? undefined : `${describeTlsFailure(wrongName)} (${who})`
}

function peerCertificate(socket: TLSSocket): PeerCertificate | undefined {
  const certificate = socket.getPeerCertificate() as Partial<DetailedPeerCertificate> | null
  return certificate?.raw === undefined ? undefined : (certificate as PeerCertificate)
}

function identityOf(socket: TLSSocket): PeerIdentity {
  const certificate = socket.getPeerX509Certificate()
  return certificate === undefined ? { kind: 'nobody' } : certificateIdentity(certificate)
}

function describeCertificate(certificate: PeerCertificate | undefined): string {
  const { CN, O } = certificate?.subject ?? {}
  const name = String(CN ?? O ?? certificate?.subjectaltname ?? 'without a name').slice(0, 128)
  return `certificate "${name}", serial ${certificate?.serialNumber.slice(0, 64) ?? 'none'}`
}

function once(outcome: SecureOutcome): SecureOutcome {
  let settled = false
  const first = (): boolean => !settled && (settled = true)
  return {
    secured: (socket, identity, who) => {
      if (first()) outcome.secured(socket, identity, who)
    },
    failed: (reason, socket) => {
      if (first()) outcome.failed(reason, socket)
    },
  }
}

function ignore(): void {
  // The end of the socket follows, and is heard as such.
}
