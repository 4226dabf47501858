/** Who a certificate says somebody is, against what openssl makes of the same subject. */

import { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { certificateIdentity, parseDistinguishedName } from '../../net/peer-identity.ts'
import { mustRun } from '../support/child.ts'
import { tempDirectory } from '../support/scope.ts'

/** A certificate of that subject, and the subject as openssl prints it by RFC 2253, the form that RFC 4514 took over. */
async function certificate(t: Test, subject: string): Promise<[X509Certificate, string]> {
  const folder = await tempDirectory(t)
  const file = path.join(folder, 'cert.pem')
  await mustRun(t, 'openssl', [
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'],
    ...['-utf8', '-keyout', path.join(folder, 'key.pem'), '-out', file, '-subj', subject],
  ])
  const args = ['x509', '-noout', '-subject', '-nameopt', 'RFC2253', '-in', file]
  const printed = await mustRun(t, 'openssl', args)
  return [new X509Certificate(await readFile(file)), printed.trim().replace(/^subject=/, '')]
}

void t.test('a subject is what openssl says it is, whatever it is made of', async (t) => {
  const cases: [subject: string, commonName: string | undefined][] = [
    ['/CN=backup', 'backup'],
    ['/C=GB/O=Example Home/CN=laptop.example.com', 'laptop.example.com'],
    ['/O=Größe & Söhne/CN=straße', 'straße'],
    ['/O=A, B \\+ "C"; <D>/CN=a\\+b=c', 'a+b=c'],
    ['/O=back\\\\slash/CN=two\nCN=root', 'two\nCN=root'],
    ['/O=x/CN= lead and trail ', ' lead and trail '],
    ['/O=#hash/emailAddress=a@b.c/DC=org/UID=7/CN=#1', '#1'],
    ['/O=x/CN=a/CN=b', undefined],
    ['/O=without', undefined],
  ]
  for (const [subject, commonName] of cases) {
    const [made, printed] = await certificate(t, subject)
    const identity = certificateIdentity(made)
    t.match(identity, { kind: 'certificate', commonName }, subject)
    const expected = parseDistinguishedName(printed)
    t.ok(expected !== undefined && identity.kind === 'certificate')
    t.equal(identity.kind === 'certificate' && identity.subject, expected, printed)
  }
})

void t.test('a certificate without a subject is nobody in particular', async (t) => {
  const [made] = await certificate(t, '/')
  const identity = certificateIdentity(made)
  t.match(identity, { kind: 'certificate', commonName: undefined })
  t.ok(identity.kind === 'certificate')
  t.not(identity.kind === 'certificate' && identity.subject, parseDistinguishedName('CN='))
})

void t.test('of one name there are several spellings, of two names none in common', (t) => {
  const same: [string, string][] = [
    ['CN=a,O=b', 'cn = a , o=b'],
    ['CN=a\\,b', 'CN=a\\2cb'],
    ['CN=a+O=b', 'O=b + CN=a'],
    ['CN=stra\\C3\\9Fe', 'CN=straße'],
    ['CN=a\\ ', 'CN=a\\20'],
    ['CN=a\\\\', 'CN=a\\5C'],
    ['2.5.4.3=a', '2.5.4.3 =a'],
  ]
  for (const [a, b] of same) {
    t.ok(parseDistinguishedName(a), a)
    t.equal(parseDistinguishedName(a), parseDistinguishedName(b), `${a} is ${b}`)
  }
  const different: [string, string][] = [
    ['CN=a,O=b', 'O=b,CN=a'],
    ['CN=a', 'CN=A'],
    ['CN=a,O=b', 'CN=a\\,O=b'],
    ['CN=a+O=b', 'CN=a,O=b'],
    ['CN=a\\ ', 'CN=a'],
    ['CN=a', 'O=a'],
    ['CN=a', 'CN=a,CN=a'],
  ]
  for (const [a, b] of different)
    t.not(parseDistinguishedName(a), parseDistinguishedName(b), `${a} is not ${b}`)
  for (const bad of ['', 'CN', 'CN=a,', ',CN=a', '=a', 'CN=a\\', 'CN=\\ff', 'C N=a', 'CN=a++O=b'])
    t.equal(parseDistinguishedName(bad), undefined, `"${bad}"`)
  t.end()
})
