/**
 * Certificates and keys for tests, made when they run by openssl, in folders laid out as QEMU, libvirt and nbdkit have it.
 * None of it is kept, and none is secret.
 */

import { chmod, copyFile, mkdir, writeFile } from 'node:fs/promises'
import { randomBytes } from 'node:crypto'
import path from 'node:path'

import { mustRun } from './child.ts'
import type { Scope } from './scope.ts'

type Side = 'server' | 'client'

export interface CertificateOptions {
  readonly subject?: string
  /** As openssl writes them: `DNS:name`, `IP:address`. */
  readonly names?: string
  /** As openssl writes it: `serverAuth`, `clientAuth`. */
  readonly usage?: string
  /** The last day, from now; negative for one that has expired. */
  readonly days?: number
  /** An argument of openssl's -newkey. */
  readonly key?: string
}

/** A certificate authority of its own. */
export class Authority {
  readonly #scope: Scope
  readonly folder: string
  #serial = 1

  private constructor(scope: Scope, folder: string) {
    this.#scope = scope
    this.folder = folder
  }

  /** `issuer`: who signs it, if not it itself. */
  static async make(
    scope: Scope,
    folder: string,
    name = 'Test CA',
    issuer?: Authority,
  ): Promise<Authority> {
    await mkdir(folder, { recursive: true })
    const authority = new Authority(scope, folder)
    const signed = ['-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem'].map((argument) =>
      argument.startsWith('-') ? argument : path.join(issuer?.folder ?? '', argument),
    )
    await authority.#openssl(
      ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'],
      ['-keyout', 'ca-key.pem', '-out', 'ca-cert.pem', '-days', '30', '-subj', `/CN=${name}`],
      ['-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=keyCertSign,cRLSign'],
      issuer === undefined ? [] : signed,
    )
    return authority
  }

  /** A folder with what one side needs. */
  async issue(folder: string, side: Side, options: CertificateOptions = {}): Promise<string> {
    const { subject = side, names = 'DNS:localhost,IP:127.0.0.1' } = options
    const { usage = `${side}Auth`, days = 30, key = 'ec' } = options
    await mkdir(folder, { recursive: true })
    const at = (name: string): string => path.join(folder, name)
    await writeFile(
      at('extensions'),
      `subjectAltName=${names}\nextendedKeyUsage=${usage}\nbasicConstraints=CA:FALSE\n`,
    )
    const curve = key === 'ec' ? ['-pkeyopt', 'ec_paramgen_curve:prime256v1'] : []
    const keyPath = at(`${side}-key.pem`)
    await this.#openssl(
      ['req', '-new', '-newkey', key, ...curve, '-nodes', '-subj', `/CN=${subject}`],
      ['-keyout', keyPath, '-out', at('request.pem')],
    )
    this.#serial += 1
    await this.#openssl(
      ['x509', '-req', '-in', at('request.pem'), '-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem'],
      ['-set_serial', `${this.#serial}`, '-days', `${days}`, '-extfile', at('extensions')],
      ['-out', at(`${side}-cert.pem`)],
    )
    await chmod(keyPath, 0o600)
    await copyFile(path.join(this.folder, 'ca-cert.pem'), at('ca-cert.pem'))
    return folder
  }

  /** Writes `ca-crl.pem` into `folder`, with the certificates given as revoked. */
  async revoke(folder: string, ...certificates: string[]): Promise<void> {
    await writeFile(path.join(this.folder, 'index.txt'), '')
    await writeFile(
      path.join(this.folder, 'ca.cnf'),
      '[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\ndefault_md=sha256\ndefault_crl_days=30\n',
    )
    const authority = ['-config', 'ca.cnf', '-cert', 'ca-cert.pem', '-keyfile', 'ca-key.pem']
    for (const certificate of certificates)
      await this.#openssl(['ca', ...authority, '-revoke', certificate])
    await this.#openssl(['ca', ...authority, '-gencrl', '-out', path.join(folder, 'ca-crl.pem')])
  }

  async #openssl(...args: string[][]): Promise<void> {
    await mustRun(this.#scope, 'openssl', args.flat(), { cwd: this.folder })
  }
}

/** A file of pre-shared keys with a line for each user. */
export async function writePskFile(
  file: string,
  users: readonly string[] = ['vm1'],
): Promise<string> {
  const lines = users.map((user) => `${user}:${randomBytes(32).toString('hex')}\n`)
  await writeFile(file, lines.join(''), { mode: 0o600 })
  return file
}
