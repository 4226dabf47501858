/** TLS on real sockets: who is let in, what is served through it, and how it ends. */

import { once } from 'node:events'
import net from 'node:net'
import path from 'node:path'
import type { ConnectionOptions } from 'node:tls'

import t, { type Test } from 'tap'

import type { Logger } from '../../core/logger.ts'
import { SILENT } from '../../core/logger.ts'
import { KiB, MiB } from '../../core/units.ts'
import { parseClientRule } from '../../nbd/access.ts'
import type { TlsSettings } from '../../nbd/listener-security.ts'
import type { TransportMode } from '../../net/transport.ts'
import { Authority, writePskFile } from '../support/certificates.ts'
import { RawClient, request, stage, temporaryFolder, until, type Stage } from './harness.ts'
import { askForTls, certificateOf, keyOf, secure } from './tls-client.ts'
import { READ, STRUCTURED_REPLY, WRITE, option, setContexts } from './wire.ts'

const TRANSPORTS: TransportMode[] = ['in-place', 'copying']

interface World {
  readonly folder: string
  readonly authority: Authority
  readonly x509: TlsSettings
  readonly psk: TlsSettings
  readonly client: ConnectionOptions
  readonly vm1: ConnectionOptions
}

async function world(t: Test): Promise<World> {
  const folder = await temporaryFolder(t)
  const authority = await Authority.make(t, path.join(folder, 'ca'))
  const directory = await authority.issue(path.join(folder, 'server'), 'server')
  const client = await authority.issue(path.join(folder, 'client'), 'client')
  const file = await writePskFile(path.join(folder, 'keys.psk'), ['vm1', 'vm2'])
  return {
    folder,
    authority,
    x509: { source: { kind: 'x509', directory }, required: true, anybody: false },
    psk: { source: { kind: 'psk', file, user: undefined }, required: true, anybody: false },
    client: await certificateOf(client),
    vm1: await keyOf(file, 'vm1'),
  }
}

/** Through STARTTLS and TLS, with greeting and flags behind it. */
async function secured({ raw }: Stage, options: ConnectionOptions): Promise<RawClient> {
  const client = await raw()
  await askForTls(client)
  return secure(client, options)
}

async function attached(stage: Stage, options: ConnectionOptions): Promise<RawClient> {
  const client = await secured(stage, options)
  await client.attachGreeted('disk')
  return client
}

/** What was logged, for people. */
function listening(): { logger: Logger; reasons: string[] } {
  const reasons: string[] = []
  const warn = (details: object): void => {
    reasons.push(String((details as { reason?: string }).reason))
  }
  return { logger: { ...SILENT, warn }, reasons }
}

void t.test('requests of any size are served through TLS', async (t) => {
  const { x509, psk, client, vm1 } = await world(t)
  for (const transport of TRANSPORTS) {
    for (const [tls, options] of [
      [x509, client],
      [psk, vm1],
    ] as const) {
      const here = await stage(t, { tls, transport })
      const one = await attached(here, options)
      const data = Buffer.alloc(3 * MiB + 5, 'any content ')
      one.send(
        request(WRITE, 1, 777, data.length),
        data,
        request(WRITE, 2, 0, 3),
        Buffer.from('abc'),
      )
      t.match(await one.reply(), { error: 0, cookie: 1 })
      t.match(await one.reply(), { error: 0, cookie: 2 })
      one.send(request(READ, 3, 777, data.length), request(READ, 4, 0, 3))
      t.ok((await one.reply(data.length)).data.equals(data))
      t.equal((await one.reply(3)).data.toString(), 'abc')
      t.ok(here.device.bytes.subarray(777, 777 + data.length).equals(data))
      t.match(here.server.connections, [{ bytesRead: data.length + 3, phase: 'transmission' }])
      one.socket.destroy()
    }
  }
})

void t.test('a client is known by its certificate, by its key, or not at all', async (t) => {
  const { x509, psk, client, vm1 } = await world(t)
  const { checkServerIdentity, ca } = client
  const nameless = { checkServerIdentity, ca }
  const cases: [string, TlsSettings, ConnectionOptions, boolean][] = [
    ['cn:client', x509, client, true],
    ['dn:CN=client', x509, client, true],
    ['dn:CN=client,O=Example', x509, client, false],
    ['cn:server', x509, client, false],
    ['psk:vm1', psk, vm1, true],
    ['psk:vm2', psk, vm1, false],
    ['cn:vm1', psk, vm1, false],
    ['cn:client', { ...x509, anybody: true }, client, false],
    ['cn:client', { ...x509, anybody: true }, nameless, false],
  ]
  for (const [rule, tls, options, admitted] of cases) {
    const here = await stage(t, { tls, clients: [parseClientRule(rule)] })
    const one = await secured(here, options)
    one.send(option(3))
    let listed = 0
    while ((await one.optionReply()).type === 2) listed += 1
    t.equal(listed, admitted ? 1 : 0, rule)
    const attach = one.attachGreeted('disk')
    if (admitted) await attach
    else await t.rejects(attach, /granted, not no export that this client may use/)
    one.socket.destroy()
  }
  const here = await stage(t, { tls: { ...x509, anybody: true } })
  const one = await attached(here, nameless)
  one.send(request(READ, 1, 0, 10))
  t.equal(
    (await one.reply(10)).error,
    0,
    'what is for everybody is for nobody in particular as well',
  )
  one.socket.destroy()
})

void t.test('who cannot prove itself is sent away unheard, and the log says why', async (t) => {
  const { x509, psk, client, vm1, folder, authority } = await world(t)
  const file = (name: string): string => path.join(folder, name)
  const other = await Authority.make(t, file('other-ca'))
  const own = async (name: string, from: Authority, more: object): Promise<ConnectionOptions> =>
    certificateOf(await from.issue(file(name), 'client', more), file('server'))
  const { checkServerIdentity, ca } = client
  const keys = (psk.source as { file: string }).file
  const cases: [string, TlsSettings, ConnectionOptions, RegExp][] = [
    ['no certificate', x509, { ca, checkServerIdentity }, /showed no certificate/],
    ['another authority', x509, await own('foreign', other, {}), /not signed by the ca-cert/],
    ['an expired one', x509, await own('old', authority, { days: -1 }), /has expired/],
    ['a server’s', x509, await own('srv', authority, { usage: 'serverAuth' }), /not made for this/],
    ['a key for a certificate', x509, vm1, /TLS: it /],
    ['a certificate for a key', psk, client, /TLS: it /],
    ['an unknown user', psk, await keyOf(keys, 'vm9', Buffer.alloc(32, 1)), /"vm9"/],
    ['a wrong key', psk, await keyOf(keys, 'vm1', Buffer.alloc(32, 1)), /another one.*"vm1"/],
    [
      'an old version',
      x509,
      { ...client, minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'ALL:@SECLEVEL=0' },
      /too old/,
    ],
    [
      'no certificate on either side',
      x509,
      { checkServerIdentity, maxVersion: 'TLSv1.2', ciphers: 'aNULL:@SECLEVEL=0' },
      /no cipher suite/,
    ],
  ]
  for (const [what, tls, options, reason] of cases) {
    const { logger, reasons } = listening()
    const here = await stage(t, { tls, logger })
    const client = await here.raw()
    await askForTls(client)
    let heard: Buffer = Buffer.alloc(0)
    try {
      // In TLS 1.3 the client takes the connection for made before the server has looked at its certificate.
      const one = await secure(client, options)
      one.send(option(3))
      heard = await one.rest()
    } catch {
      // The handshake failed on the client's side already.
    }
    t.equal(heard.length, 0, `${what}: no option is answered`)
    await until(() => here.server.connections.length === 0)
    t.equal(reasons.length, 1, `${what}: once`)
    t.match(reasons[0], reason, what)
  }
})

void t.test('what was negotiated in the clear is not in force under TLS', async (t) => {
  const { x509, client } = await world(t)
  for (const transport of TRANSPORTS) {
    const here = await stage(t, { tls: { ...x509, required: false }, transport })
    const raw = await here.raw()
    await askForTls(raw, [STRUCTURED_REPLY, setContexts('disk', 'base:allocation')])
    const one = await secure(raw, client)
    const flags = await one.attachGreeted('disk')
    t.equal(flags & 128, 0, 'no DF without structured replies')
    one.send(request(READ, 5, 0, 4))
    t.match(await one.reply(4), { error: 0, cookie: 5 }, 'a simple reply')
    one.socket.destroy()
  }
})

void t.test('where TLS is optional, the clear is served as well', async (t) => {
  const { psk, vm1 } = await world(t)
  const here = await stage(t, { tls: { ...psk, required: false } })
  const clear = await here.rawAttached()
  const one = await attached(here, vm1)
  for (const client of [clear, one]) {
    client.send(request(READ, 1, 0, 4))
    t.equal((await client.reply(4)).error, 0)
    client.socket.destroy()
  }
})

void t.test('a server that ends tells its clients so, after what they asked for', async (t) => {
  const { psk, vm1 } = await world(t)
  const here = await stage(t, { tls: psk })
  here.device.mode = 'held'
  const one = await attached(here, vm1)
  let failure: Error | undefined
  one.socket.on('error', (error) => (failure = error))
  one.send(request(READ, 1, 0, 100 * KiB))
  await here.device.whenHeld(1)
  const ended = once(one.socket, 'end')
  const closed = here.server.close()
  here.device.release()
  t.equal((await one.reply(100 * KiB)).error, 0)
  await ended
  one.socket.end()
  await closed
  t.equal(failure, undefined, 'it ends with a close_notify')
})

void t.test('a client that has said its last word gets its answers', async (t) => {
  const { psk, vm1 } = await world(t)
  const here = await stage(t, { tls: psk })
  here.device.mode = 'held'
  const one = await attached(here, vm1)
  one.send(request(READ, 1, 0, 1 * MiB), request(WRITE, 2, 9, 4), Buffer.from('last'))
  one.socket.end()
  await here.device.whenHeld(2)
  here.device.release()
  t.equal((await one.reply(1 * MiB)).error, 0)
  t.equal((await one.reply()).error, 0)
  await one.closed
  t.equal(here.device.bytes.toString('latin1', 9, 13), 'last')
})

void t.test('a connection that is cut under TLS does no half writes', async (t) => {
  const { psk, vm1 } = await world(t)
  const here = await stage(t, { tls: psk })
  const client = await here.raw()
  await askForTls(client)
  const one = await secure(client, vm1)
  await one.attachGreeted('disk')
  one.send(request(WRITE, 1, 0, 4), Buffer.from('full'))
  t.equal((await one.reply()).error, 0)
  one.send(request(WRITE, 2, 0, 100), Buffer.from('half'))
  await until(() => here.server.connections[0]?.bytesHeld !== 0)
  // A FIN without close_notify.
  client.socket.destroy()
  await until(() => here.server.connections.length === 0)
  t.equal(here.device.bytes.toString('latin1', 0, 4), 'full')
})

void t.test('many small replies leave in few records', async (t) => {
  const { psk, vm1 } = await world(t)
  const here = await stage(t, { tls: psk })
  if (here.address.kind !== 'unix') throw new Error('a unix socket was asked for')
  const records = await countingProxy(t, here.address.path)
  const socket = net.connect(records.path)
  const client = new RawClient(socket)
  await askForTls(client)
  const one = await secure(client, vm1)
  await one.attachGreeted('disk')
  const before = records.count()
  const asked = 120
  one.send(
    Buffer.concat(Array.from({ length: asked }, (_, cookie) => request(READ, cookie, 0, 512))),
  )
  for (let cookie = 0; cookie < asked; cookie += 1)
    t.match(await one.reply(512), { error: 0, cookie })
  // 62 KiB fill four records; how the requests arrive in pieces may make it a few more.
  t.ok(records.count() - before <= 12, `${records.count() - before} records`)
  one.socket.destroy()
  await one.closed
})

/** A proxy to a unix socket that counts the records that come from there, once TLS is spoken. */
async function countingProxy(t: Test, to: string): Promise<{ path: string; count: () => number }> {
  let found = 0
  const server = net.createServer((near) => {
    const far = net.connect(to)
    near.pipe(far)
    let held: Buffer = Buffer.alloc(0)
    let clear = 18 + 20
    far.on('data', (chunk) => {
      held = Buffer.concat([held, chunk])
      const skipped = Math.min(clear, held.length)
      clear -= skipped
      held = held.subarray(skipped)
      while (held.length >= 5 && held.length >= 5 + held.readUInt16BE(3)) {
        held = held.subarray(5 + held.readUInt16BE(3))
        found += 1
      }
      near.write(chunk)
    })
    near.on('close', () => far.destroy()).on('error', () => undefined)
    far.on('close', () => near.destroy()).on('error', () => undefined)
  })
  const at = path.join(await temporaryFolder(t), 'proxy.sock')
  server.listen(at)
  await once(server, 'listening')
  t.teardown(() => server.close())
  return { path: at, count: () => found }
}
