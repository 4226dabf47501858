/**
 * What one side of an encrypted connection proves itself with and trusts the other one by: X.509 files, or pre-shared keys.
 *
 * Invariants:
 *  - Both sides prove themselves: credentials know no way to leave the other side unauthenticated. (A server may demand
 *    nothing of its clients: secure-socket.ts.)
 *  - Every suite has forward secrecy: who records the traffic and finds a key later still cannot read it.
 *  - No session is resumed: every connection proves itself anew, against the files as they are then.
 *  - Nothing outside of the files is trusted, whatever authorities the system or the environment knows.
 */

import { constants } from 'node:crypto'
import { createSecureContext, type SecureContextOptions } from 'node:tls'

import { asFault, Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import { readCertificates, type TlsSide } from './certificates.ts'
import { parsePskFile, type PskKeys } from './psk-file.ts'
import { readTrustedFile } from './secret-file.ts'

export type CredentialSource =
  | { readonly kind: 'x509'; readonly directory: string }
  | {
      readonly kind: 'psk'
      readonly file: string
      /** Who the client is; a server then knows only this one. May be left out where a client's file has one user. */
      readonly user: string | undefined
    }

/** What node:tls is given, apart from what differs from connection to connection. */
export type Material =
  | { readonly kind: 'x509'; readonly context: SecureContextOptions }
  | { readonly kind: 'psk'; readonly context: SecureContextOptions; readonly keys: PskKeys }

export interface CredentialOptions {
  readonly source: CredentialSource
  readonly side: TlsSide
  /** The oldest version to speak. 1.2 is for clients that are not ours. */
  readonly minVersion: 'TLSv1.2' | 'TLSv1.3'
  /** Milliseconds on a clock that never goes back. */
  readonly nowMs?: () => number
}

/** Files are read again for a new connection, but not more often than this. */
const RENEW_MS = 1000

/**
 * With forward secrecy and authenticated encryption, the fastest first. TLS 1.3 (RFC 8446, B.4): a pre-shared key goes with
 * the suites that hash by SHA-256 (section 4.2.11). TLS 1.2: of those with pre-shared keys, what OpenSSL has.
 */
const SUITES = {
  x509: [
    'TLS_AES_128_GCM_SHA256',
    'TLS_AES_256_GCM_SHA384',
    'TLS_CHACHA20_POLY1305_SHA256',
    'ECDHE+AESGCM',
    'ECDHE+CHACHA20',
  ],
  psk: [
    'TLS_AES_128_GCM_SHA256',
    'TLS_CHACHA20_POLY1305_SHA256',
    'ECDHE-PSK-CHACHA20-POLY1305',
    'DHE-PSK-AES256-GCM-SHA384',
  ],
}
/** RSA and DH of at least 2048 bits, no SHA-1 in signatures (SSL_CTX_set_security_level(3)). */
const STRENGTH = '@SECLEVEL=2'

export class Credentials {
  readonly kind: CredentialSource['kind']
  readonly #options: CredentialOptions
  readonly #nowMs: () => number
  #material: Material
  #readMs: number
  #renewal: Promise<Material> | undefined

  private constructor(options: CredentialOptions, material: Material) {
    this.#options = options
    this.#nowMs = options.nowMs ?? (() => performance.now())
    this.kind = options.source.kind
    this.#material = material
    this.#readMs = this.#nowMs()
  }

  /** @throws Fault that names the file and says what to do */
  static async load(options: CredentialOptions): Promise<Credentials> {
    return new Credentials(options, await read(options))
  }

  /**
   * For the next connection: renewed certificates and keys count without a restart. Files that are being replaced and do
   * not fit just then change nothing.
   */
  current(logger: Logger): Promise<Material> {
    if (this.#nowMs() - this.#readMs < RENEW_MS) return Promise.resolve(this.#material)
    this.#renewal ??= this.#renew(logger)
    return this.#renewal
  }

  async #renew(logger: Logger): Promise<Material> {
    try {
      this.#material = await read(this.#options)
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      logger.error({ reason }, 'cannot renew the TLS credentials; the ones from before stay in use')
    } finally {
      this.#readMs = this.#nowMs()
      this.#renewal = undefined
    }
    return this.#material
  }
}

async function read({ source, side, minVersion }: CredentialOptions): Promise<Material> {
  const common: SecureContextOptions = {
    minVersion,
    ciphers: [...SUITES[source.kind], STRENGTH].join(':'),
    honorCipherOrder: true,
    secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
  }
  const where = source.kind === 'x509' ? source.directory : source.file
  const material =
    source.kind === 'x509'
      ? await readX509(source.directory, side, common)
      : await readPsk(source, side, common)
  try {
    createSecureContext(material.context)
  } catch (error) {
    throw asFault(error, 'INVALID', `TLS cannot use the credentials of the ${side}`, {
      where,
      remedy: 'make them anew; RSA keys need at least 2048 bits, and signatures no SHA-1',
    })
  }
  return material
}

async function readX509(
  directory: string,
  side: TlsSide,
  common: SecureContextOptions,
): Promise<Material> {
  const { ca, cert, key, crl } = await readCertificates(directory, side, Date.now())
  return {
    kind: 'x509',
    context: { ...common, ca, cert, key, ...(crl === undefined ? {} : { crl }) },
  }
}

async function readPsk(
  { file, user }: Extract<CredentialSource, { kind: 'psk' }>,
  side: TlsSide,
  common: SecureContextOptions,
): Promise<Material> {
  const bytes = await readTrustedFile(file, {
    what: 'file of pre-shared keys',
    secret: true,
    remedy: 'make one with: psktool -u NAME -p FILE',
  })
  const keys = choose(parsePskFile(bytes.toString('utf8'), file), file, side, user)
  // Diffie-Hellman parameters of a fitting size are made by OpenSSL. No authority is trusted: certificates prove nothing here.
  return { kind: 'psk', context: { ...common, ca: [], dhparam: 'auto' }, keys }
}

function choose(keys: PskKeys, file: string, side: TlsSide, user: string | undefined): PskKeys {
  if (user === undefined) {
    if (side === 'server' || keys.size === 1) return keys
    throw new Fault('INVALID', 'the file of pre-shared keys has several users', {
      where: file,
      remedy: `say which one this side is: ${[...keys.keys()].slice(0, 10).join(', ')}`,
    })
  }
  const key = keys.get(user)
  if (key !== undefined) return new Map([[user, key]])
  throw new Fault('NOT_FOUND', `the file of pre-shared keys has no user "${user}"`, {
    where: file,
    remedy: `make one with: psktool -u ${user} -p ${file}`,
  })
}
