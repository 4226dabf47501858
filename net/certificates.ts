/**
 * A folder of X.509 files under the names that QEMU, libvirt and nbdkit give them, read and judged: what would fail at
 * the first connection fails here, with the name of the file.
 *
 *     ca-cert.pem                         whom the other side's certificate must be signed by
 *     server-cert.pem, server-key.pem     what the listening side shows
 *     client-cert.pem, client-key.pem     what the connecting side shows
 *     ca-crl.pem                          certificates that are revoked; where there is one, it counts
 */

import { createPrivateKey, X509Certificate, type KeyObject } from 'node:crypto'
import { join } from 'node:path'

import { Fault } from '../core/fault.ts'
import { readTrustedFile } from './secret-file.ts'

export type TlsSide = 'server' | 'client'

/** PEM texts, as node:tls takes them. */
export interface CertificateFiles {
  readonly ca: Buffer
  readonly cert: Buffer
  readonly key: Buffer
  readonly crl: Buffer | undefined
}

/** RFC 5280, section 4.2.1.12. */
const PURPOSE = { server: '1.3.6.1.5.5.7.3.1', client: '1.3.6.1.5.5.7.3.2' } as const

/** @throws Fault that names the file and says what to do */
export async function readCertificates(
  directory: string,
  side: TlsSide,
  nowMs: number,
): Promise<CertificateFiles> {
  const at = (name: string): string => join(directory, name)
  const names = ['ca-cert.pem', `${side}-cert.pem`, `${side}-key.pem`] as const
  const remedy = `the folder needs ${names.join(', ')}; docs/guide.md shows how to make them`
  const [caPath, certPath, keyPath] = [at(names[0]), at(names[1]), at(names[2])]
  const plain = { secret: false, remedy }
  const ca = await readTrustedFile(caPath, { what: 'certificate of the authority', ...plain })
  const cert = await readTrustedFile(certPath, { what: `certificate of the ${side}`, ...plain })
  const key = await readTrustedFile(keyPath, {
    what: `private key of the ${side}`,
    secret: true,
    remedy,
  })
  const authorities = parseCertificates(ca, caPath)
  for (const authority of authorities) checkAuthority(authority, caPath)
  checkTime(authorities, caPath, nowMs)
  const [leaf, ...chain] = parseCertificates(cert, certPath)
  checkTime([leaf], certPath, nowMs)
  checkPurpose(leaf, certPath, side)
  if (!leaf.checkPrivateKey(parseKey(key, keyPath)))
    throw new Fault('INVALID', `the private key does not belong to ${names[1]}`, {
      where: keyPath,
      remedy: 'put the two files there that were made together',
    })
  checkChain(leaf, [...chain, ...authorities], authorities, certPath)
  return { ca, cert, key, crl: await readRevocations(at('ca-crl.pem')) }
}

async function readRevocations(path: string): Promise<Buffer | undefined> {
  try {
    return await readTrustedFile(path, { what: 'revocation list', secret: false, remedy: '' })
  } catch (error) {
    if (error instanceof Fault && error.code === 'NOT_FOUND') return undefined
    throw error
  }
}

type NonEmpty<T> = [T, ...T[]]

/** Text around the PEM blocks, such as certtool writes, is not looked at. */
function parseCertificates(pem: Buffer, path: string): NonEmpty<X509Certificate> {
  const blocks = pem
    .toString('latin1')
    .match(/-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----/g)
  const remedy = 'write it in PEM, the format that certtool and openssl write by default'
  try {
    const [first, ...others] = (blocks ?? []).map((block) => new X509Certificate(block))
    if (first !== undefined) return [first, ...others]
  } catch (cause) {
    throw new Fault('INVALID', 'a certificate in it cannot be read', { where: path, remedy, cause })
  }
  throw new Fault('INVALID', 'it has no certificate', { where: path, remedy })
}

function parseKey(pem: Buffer, path: string): KeyObject {
  const text = pem.toString('latin1')
  if (/-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED/m.test(text))
    throw new Fault('NOT_SUPPORTED', 'the private key is encrypted with a passphrase', {
      where: path,
      remedy: 'take the passphrase off (openssl pkey -in OLD -out NEW) and keep the file secret',
    })
  try {
    return createPrivateKey(pem)
  } catch (cause) {
    throw new Fault('INVALID', 'it has no private key that can be read', {
      where: path,
      remedy: 'write it in PEM, the format that certtool and openssl write by default',
      cause,
    })
  }
}

function checkAuthority(authority: X509Certificate, path: string): void {
  if (authority.ca) return
  throw new Fault('INVALID', `${nameOf(authority)} is not the certificate of an authority`, {
    where: path,
    remedy: 'make it with basicConstraints CA:TRUE (certtool: the line "ca" in the template)',
  })
}

/** One certificate that is valid is enough: old authorities stay in the file while they are being replaced. */
function checkTime(
  certificates: readonly [X509Certificate, ...X509Certificate[]],
  path: string,
  nowMs: number,
): void {
  const wrong = certificates.map((one) => objectionToTime(one, nowMs))
  const [first] = wrong
  if (wrong.includes(undefined) || first === undefined) return
  throw new Fault('INVALID', first, {
    where: path,
    remedy: "renew it, or set this machine's clock right",
  })
}

function objectionToTime(certificate: X509Certificate, nowMs: number): string | undefined {
  const { validFrom, validTo } = certificate
  if (nowMs > Date.parse(validTo)) return `${nameOf(certificate)} expired on ${validTo}`
  if (nowMs < Date.parse(validFrom))
    return `${nameOf(certificate)} is not valid before ${validFrom}`
  return undefined
}

function checkPurpose(leaf: X509Certificate, path: string, side: TlsSide): void {
  // Node's name for the extended key usage; it is undefined where the certificate has none, which allows every use.
  const usage = leaf.keyUsage as readonly string[] | undefined
  if (usage === undefined || usage.includes(PURPOSE[side])) return
  throw new Fault('INVALID', `${nameOf(leaf)} is not made to be shown by a ${side}`, {
    where: path,
    remedy: `make it with the extended key usage ${side}Auth (certtool: tls_www_${side})`,
  })
}

/** The path from `leaf` to one of the authorities exists. Whether it is valid in every detail, TLS decides. */
function checkChain(
  leaf: X509Certificate,
  known: readonly X509Certificate[],
  authorities: readonly X509Certificate[],
  path: string,
): void {
  let current = leaf
  // A chain without a circle visits each certificate once.
  for (let steps = 0; steps <= known.length; steps += 1) {
    const subject = current
    if (authorities.some(({ raw }) => raw.equals(subject.raw))) return
    const issuer = known.find((one) => subject.checkIssued(one) && subject.verify(one.publicKey))
    if (issuer === undefined) break
    current = issuer
  }
  throw new Fault('INVALID', `${nameOf(leaf)} is not signed by ca-cert.pem`, {
    where: path,
    remedy: 'put the authority that signed it into ca-cert.pem, or have it signed by that one',
  })
}

function nameOf(certificate: X509Certificate): string {
  return `the certificate "${certificate.subject.replaceAll('\n', ', ').slice(0, 200)}"`
}
