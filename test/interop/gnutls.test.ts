/** The credentials against GnuTLS, which NBD's clients use: files that its tools made, and its client and server. */

import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import net, { type Socket } from 'node:net'
import path from 'node:path'

import t, { type Test } from 'tap'

import { SILENT } from '../../core/logger.ts'
import { Credentials, type CredentialSource, type Material } from '../../net/credentials.ts'
import { secureAccepted, secureDialled } from '../../net/secure-socket.ts'
import { mustRun, runTool, startChild, type Result } from '../support/child.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'

/** What libnbd and QEMU add to the system's own priorities for pre-shared keys. */
const PSK = 'NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK'
const DHE = 'NORMAL:-KX-ALL:+DHE-PSK'

async function load(source: CredentialSource, side: 'server' | 'client'): Promise<Material> {
  return (await Credentials.load({ source, side, minVersion: 'TLSv1.2' })).current(SILENT)
}

/** A server that ends each connection after the handshake. @returns its port, and what each handshake came to, in turn */
async function serve(t: Test, material: Material): Promise<[number, () => Promise<string>]> {
  const outcomes: string[] = []
  let wake: () => void = () => undefined
  const add = (outcome: string): void => {
    outcomes.push(outcome)
    wake()
  }
  const server = net.createServer({ pauseOnConnect: true }, (raw) =>
    secureAccepted(
      raw,
      material,
      {},
      {
        secured: (socket, identity) => {
          const version = socket.getProtocol() ?? 'no TLS'
          socket.end(() => add(`${identity}, ${version}, ${socket.getCipher().name}`))
        },
        failed: (reason, socket) => {
          ;(socket ?? raw).destroy()
          add(`refused: ${reason}`)
        },
      },
    ),
  )
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const next = async (): Promise<string> => {
    while (outcomes.length === 0) await new Promise<void>((woken) => (wake = woken))
    return outcomes.shift()!
  }
  return [(server.address() as net.AddressInfo).port, next]
}

function gnutlsClient(t: Test, port: number, ...args: string[]): Promise<Result> {
  return runTool(t, 'gnutls-cli', [...args, '-p', `${port}`, '127.0.0.1'])
}

/** Files as docs/guide.md makes them. */
async function certificates(t: Test, folder: string): Promise<void> {
  const run = (text: string): Promise<string> =>
    mustRun(t, 'certtool', text.split(' '), { cwd: folder })
  const template = (name: string, ...lines: string[]): Promise<void> =>
    writeFile(path.join(folder, name), `${lines.join('\n')}\n`)
  await template('ca.info', 'cn = "Test CA"', 'ca', 'cert_signing_key', 'crl_signing_key')
  await run('--generate-privkey --outfile ca-key.pem')
  await run(
    '--generate-self-signed --load-privkey ca-key.pem --template ca.info --outfile ca-cert.pem',
  )
  const signed = '--load-ca-certificate ca-cert.pem --load-ca-privkey ca-key.pem'
  for (const side of ['server', 'client']) {
    const names = ['dns_name = "localhost"', 'ip_address = "127.0.0.1"']
    await template(`${side}.info`, `cn = "${side}"`, ...names, `tls_www_${side}`, 'signing_key')
    await run(`--generate-privkey --outfile ${side}-key.pem`)
    await run(
      `--generate-certificate ${signed} --load-privkey ${side}-key.pem --template ${side}.info --outfile ${side}-cert.pem`,
    )
  }
}

void t.test('gnutls-cli proves itself by a key that psktool made', async (t) => {
  const file = path.join(await tempDirectory(t), 'keys.psk')
  await mustRun(t, 'psktool', ['-u', 'vm1', '-p', file])
  const key = (await readFile(file, 'utf8')).trim().split(':')[1]!
  const material = await load({ kind: 'psk', file, user: undefined }, 'server')
  const [port, next] = await serve(t, material)
  const cases: [string, string, RegExp][] = [
    [PSK, key, /^user "vm1", TLSv1\.3, TLS_AES_128_GCM_SHA256$/],
    [`${PSK}:-VERS-TLS1.3`, key, /^user "vm1", TLSv1\.2, ECDHE-PSK-CHACHA20-POLY1305$/],
    [`${DHE}:-VERS-TLS1.3`, key, /^user "vm1", TLSv1\.2, DHE-PSK-AES256-GCM-SHA384$/],
    [PSK, '00'.repeat(32), /^refused: its pre-shared key is another one .*vm1/],
    ['NORMAL:-KX-ALL:+PSK:-VERS-TLS1.3', key, /^refused: it offers no cipher suite/],
  ]
  for (const [priority, hex, outcome] of cases) {
    const args = ['--pskusername', 'vm1', '--pskkey', hex, '--priority', priority]
    const { stderr } = await gnutlsClient(t, port, ...args)
    t.match(await next(), outcome, `${priority}\n${stderr}`)
  }
})

void t.test('gnutls-cli proves itself by a certificate that certtool made', async (t) => {
  const folder = await tempDirectory(t)
  await certificates(t, folder)
  const at = (name: string): string => path.join(folder, name)
  const [port, next] = await serve(t, await load({ kind: 'x509', directory: folder }, 'server'))
  const authority = ['--x509cafile', at('ca-cert.pem')]
  const own = ['--x509certfile', at('client-cert.pem'), '--x509keyfile', at('client-key.pem')]
  const cases: [string[], RegExp][] = [
    [own, /^certificate "client", serial .*, TLSv1\.3,/],
    [[...own, '--priority', 'NORMAL:-VERS-TLS1.3'], /^certificate "client", serial .*, TLSv1\.2,/],
    [[], /^refused: it showed no certificate$/],
  ]
  for (const [args, outcome] of cases) {
    const { stderr } = await gnutlsClient(t, port, ...authority, ...args)
    t.match(await next(), outcome, stderr)
  }
})

void t.test('our client proves itself to gnutls-serv, by certificate and by key', async (t) => {
  const folder = await tempDirectory(t)
  await certificates(t, folder)
  const at = (name: string): string => path.join(folder, name)
  const file = at('keys.psk')
  await mustRun(t, 'psktool', ['-u', 'vm1', '-p', file])
  const x509 = ['--x509cafile', at('ca-cert.pem'), '--x509certfile', at('server-cert.pem')]
  x509.push('--x509keyfile', at('server-key.pem'), '--require-client-cert', '--verify-client-cert')
  const cases: [CredentialSource, string[]][] = [
    [{ kind: 'x509', directory: folder }, x509],
    [{ kind: 'psk', file, user: 'vm1' }, ['--pskpasswd', file, '--priority', PSK]],
  ]
  for (const [source, args] of cases) {
    const [port] = await freePorts(1)
    const server = startChild(t, 'gnutls-serv', ['--echo', '-p', `${port}`, ...args])
    const raw = await connectWhenUp(port!)
    const material = await load(source, 'client')
    const answer = await new Promise<string>((resolve, reject) => {
      secureDialled(raw, material, '127.0.0.1', {
        secured: (socket) => {
          socket.once('data', (chunk: Buffer) => resolve(chunk.toString()))
          socket.write('hello\n')
        },
        failed: (reason) => reject(new Error(reason)),
      })
    })
    t.equal(answer, 'hello\n')
    raw.destroy()
    await server.kill()
  }
})

/** gnutls-serv does not say reliably when it listens: who is refused comes again. */
async function connectWhenUp(port: number): Promise<Socket> {
  for (;;) {
    const socket = net.connect(port, '127.0.0.1')
    const up = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true))
      socket.once('error', () => resolve(false))
    })
    if (up) return socket
  }
}
