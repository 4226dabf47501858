/** Folders of certificates and files of keys: what is wrong with them shows when they are loaded, not at the first connection. */

import { execFile } from 'node:child_process'
import { chmod, copyFile, cp, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'

import t from 'tap'

import type { Logger } from '../../core/logger.ts'
import { SILENT } from '../../core/logger.ts'
import { Credentials, type CredentialSource } from '../../net/credentials.ts'
import { Authority, writePskFile } from '../support/certificates.ts'
import { tempDirectory } from '../support/scope.ts'

const run = promisify(execFile)

function load(
  source: CredentialSource,
  side: 'server' | 'client' = 'server',
): Promise<Credentials> {
  return Credentials.load({ source, side, minVersion: 'TLSv1.3' })
}

function x509(directory: string): CredentialSource {
  return { kind: 'x509', directory }
}

function psk(file: string, user?: string): CredentialSource {
  return { kind: 'psk', file, user }
}

void t.test(
  'a folder of certificates that cannot work is refused, with the file and the remedy',
  async (t) => {
    const folder = await tempDirectory(t)
    const at = (...names: string[]): string => path.join(folder, ...names)
    const authority = await Authority.make(t, at('ca'))
    const other = await Authority.make(t, at('other-ca'))
    await authority.issue(at('good'), 'server')
    await other.issue(at('foreign'), 'server')
    const issue = (options: object) => (to: string) => authority.issue(to, 'server', options)
    /** Puts `name` of another folder, or a text, in its place. */
    const put = (name: string, text: string) => (to: string) => writeFile(path.join(to, name), text)
    const take = (name: string, from: string) => (to: string) =>
      copyFile(at(from), path.join(to, name))
    const drop = (name: string) => (to: string) => rm(path.join(to, name))
    const mode = (name: string, bits: number) => (to: string) => chmod(path.join(to, name), bits)

    const cases: [string, (to: string) => Promise<unknown>, string, string, RegExp, RegExp][] = [
      [
        'no authority',
        drop('ca-cert.pem'),
        'ca-cert.pem',
        'NOT_FOUND',
        /no certificate of the authority/,
        /needs ca-cert.pem, server-cert.pem, server-key.pem/,
      ],
      [
        'no certificate',
        drop('server-cert.pem'),
        'server-cert.pem',
        'NOT_FOUND',
        /no certificate of the server/,
        /docs\/guide.md/,
      ],
      ['no key', drop('server-key.pem'), 'server-key.pem', 'NOT_FOUND', /no private key/, /needs/],
      [
        'a key that all can read',
        mode('server-key.pem', 0o644),
        'server-key.pem',
        'NOT_PERMITTED',
        /others have access to the private key.*0644/,
        /chmod 600/,
      ],
      [
        'a key that its group can write',
        mode('server-key.pem', 0o660),
        'server-key.pem',
        'NOT_PERMITTED',
        /mode 0660/,
        /chmod 600/,
      ],
      [
        'an empty certificate',
        put('server-cert.pem', ''),
        'server-cert.pem',
        'INVALID',
        /no certificate/,
        /PEM/,
      ],
      [
        'a broken certificate',
        put('server-cert.pem', '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n'),
        'server-cert.pem',
        'INVALID',
        /cannot be read/,
        /PEM/,
      ],
      [
        'an empty authority',
        put('ca-cert.pem', 'nothing'),
        'ca-cert.pem',
        'INVALID',
        /no certificate/,
        /PEM/,
      ],
      [
        'an authority that is none',
        take('ca-cert.pem', 'good/server-cert.pem'),
        'ca-cert.pem',
        'INVALID',
        /not the certificate of an authority/,
        /CA:TRUE/,
      ],
      [
        'another authority',
        take('ca-cert.pem', 'other-ca/ca-cert.pem'),
        'server-cert.pem',
        'INVALID',
        /CN=server" is not signed by ca-cert.pem/,
        /ca-cert.pem/,
      ],
      [
        'a broken key',
        put('server-key.pem', 'nothing'),
        'server-key.pem',
        'INVALID',
        /no private key that can be read/,
        /PEM/,
      ],
      [
        'the key of another one',
        take('server-key.pem', 'foreign/server-key.pem'),
        'server-key.pem',
        'INVALID',
        /does not belong to server-cert.pem/,
        /together/,
      ],
      [
        'an expired certificate',
        issue({ days: -1 }),
        'server-cert.pem',
        'INVALID',
        /expired on/,
        /renew/,
      ],
      [
        'a certificate for clients',
        issue({ usage: 'clientAuth' }),
        'server-cert.pem',
        'INVALID',
        /not made to be shown by a server/,
        /tls_www_server/,
      ],
      ['a short key', issue({ key: 'rsa:1024' }), '', 'INVALID', /TLS cannot use/, /2048/],
      [
        'a broken revocation list',
        put('ca-crl.pem', 'nothing'),
        '',
        'INVALID',
        /TLS cannot use/,
        /anew/,
      ],
      [
        'a folder in place of a file',
        async (to) => {
          await drop('server-cert.pem')(to)
          await mkdir(path.join(to, 'server-cert.pem'))
        },
        'server-cert.pem',
        'INVALID',
        /not a regular file/,
        /path of a file/,
      ],
      [
        'a file that is far too large',
        put('ca-cert.pem', 'x'.repeat(2 ** 20 + 1)),
        'ca-cert.pem',
        'INVALID',
        /too large/,
        /needs/,
      ],
      [
        'a pipe in place of a file',
        async (to) => {
          await drop('server-key.pem')(to)
          await run('mkfifo', [path.join(to, 'server-key.pem')])
        },
        'server-key.pem',
        'INVALID',
        /not a regular file/,
        /path of a file/,
      ],
      [
        'a key under a passphrase',
        async (to) => {
          await run('openssl', [
            'pkey',
            '-in',
            at('good/server-key.pem'),
            '-aes256',
            '-passout',
            'pass:x',
            '-out',
            path.join(to, 'server-key.pem'),
          ])
          await mode('server-key.pem', 0o600)(to)
        },
        'server-key.pem',
        'NOT_SUPPORTED',
        /passphrase/,
        /openssl pkey/,
      ],
    ]
    for (const [name, spoil, file, code, what, remedy] of cases) {
      const spoilt = at('spoilt')
      await cp(at('good'), spoilt, { recursive: true })
      await spoil(spoilt)
      const where = path.join(spoilt, file)
      await t.rejects(load(x509(spoilt)), { code, what, where, remedy }, name)
      await rm(spoilt, { recursive: true })
    }
    await t.rejects(load(x509(at('good')), 'client'), {
      code: 'NOT_FOUND',
      where: at('good/client-cert.pem'),
    })
    await t.rejects(load(x509(at('nowhere'))), {
      code: 'NOT_FOUND',
      where: at('nowhere/ca-cert.pem'),
    })
  },
)

void t.test('a folder as operators have it is taken', async (t) => {
  const folder = await tempDirectory(t)
  const authority = await Authority.make(t, path.join(folder, 'ca'))
  await Authority.make(t, path.join(folder, 'retired'))
  const good = path.join(folder, 'good')
  const pemOf = (name: string): Promise<Buffer> => readFile(path.join(folder, name, 'ca-cert.pem'))
  const cases: [string, () => Promise<unknown>][] = [
    ['elliptic curves', () => authority.issue(good, 'server')],
    ['RSA', () => authority.issue(good, 'server', { key: 'rsa:2048' })],
    [
      'a key that a group of services shares',
      () => chmod(path.join(good, 'server-key.pem'), 0o640),
    ],
    [
      'text before the certificate',
      async () => {
        const file = path.join(good, 'server-cert.pem')
        await writeFile(file, `X.509 Certificate Information:\n${await readFile(file, 'utf8')}`)
      },
    ],
    [
      'two authorities',
      async () =>
        writeFile(
          path.join(good, 'ca-cert.pem'),
          [await pemOf('retired'), await pemOf('ca')].join(''),
        ),
    ],
    ['a revocation list', () => authority.revoke(good)],
  ]
  for (const [name, prepare] of cases) {
    await prepare()
    t.equal((await load(x509(good))).kind, 'x509', name)
  }
})

void t.test('a certificate of an authority in between is taken with that one’s', async (t) => {
  const folder = await tempDirectory(t)
  const root = await Authority.make(t, path.join(folder, 'root'))
  const between = await Authority.make(t, path.join(folder, 'between'), 'Between', root)
  const good = await between.issue(path.join(folder, 'good'), 'server')
  const chain = [path.join(good, 'server-cert.pem'), path.join(folder, 'between', 'ca-cert.pem')]
  await copyFile(path.join(folder, 'root', 'ca-cert.pem'), path.join(good, 'ca-cert.pem'))
  await t.rejects(load(x509(good)), { code: 'INVALID', what: /not signed by ca-cert.pem/ })
  await writeFile(
    chain[0]!,
    (await Promise.all(chain.map((file) => readFile(file, 'utf8')))).join(''),
  )
  t.equal((await load(x509(good))).kind, 'x509')
})

void t.test(
  'a client is one user of its file of keys; a server knows all or the one named',
  async (t) => {
    const folder = await tempDirectory(t)
    const file = await writePskFile(path.join(folder, 'keys.psk'), ['vm1', 'vm2'])
    const users = async (loading: Promise<Credentials>): Promise<string[]> => {
      const material = await (await loading).current(SILENT)
      t.same(
        material.context.ca,
        [],
        'no authority, not even the system’s, can stand in for the key',
      )
      return material.kind === 'psk' ? [...material.keys.keys()] : []
    }
    t.same(await users(load(psk(file))), ['vm1', 'vm2'])
    t.same(await users(load(psk(file, 'vm2'))), ['vm2'])
    t.same(await users(load(psk(file, 'vm2'), 'client')), ['vm2'])
    await t.rejects(load(psk(file), 'client'), {
      code: 'INVALID',
      what: /several users/,
      where: file,
      remedy: /vm1, vm2/,
    })
    await t.rejects(load(psk(file, 'eve')), {
      code: 'NOT_FOUND',
      what: /no user "eve"/,
      remedy: /psktool -u eve/,
    })
    await t.rejects(load(psk(path.join(folder, 'none'))), { code: 'NOT_FOUND', remedy: /psktool/ })
    await chmod(file, 0o604)
    await t.rejects(load(psk(file)), { code: 'NOT_PERMITTED', what: /others have access.*0604/ })
  },
)

void t.test(
  'renewed files count for new connections; files that do not fit change nothing',
  async (t) => {
    const folder = await tempDirectory(t)
    const file = path.join(folder, 'keys.psk')
    const complaints: string[] = []
    const logger: Logger = { ...SILENT, error: (_, message) => complaints.push(message) }
    await writePskFile(file, ['old'])
    let nowMs = 0
    const credentials = await Credentials.load({
      source: psk(file),
      side: 'server',
      minVersion: 'TLSv1.3',
      nowMs: () => nowMs,
    })
    const users = async (): Promise<string> => {
      const material = await credentials.current(logger)
      return material.kind === 'psk' ? [...material.keys.keys()].join() : ''
    }
    await writePskFile(`${file}.new`, ['new'])
    await rename(`${file}.new`, file)
    t.equal(await users(), 'old', 'a crowd of strangers does not make it read files all the time')
    nowMs += 1000
    t.equal(await users(), 'new')
    await writeFile(file, 'half of a l')
    nowMs += 1000
    t.equal(await users(), 'new')
    t.match(complaints, [/cannot renew/])
  },
)
