/** What a client does wrong around STARTTLS harms nobody else, and gets it nothing. */

import { Socket } from 'node:net'
import path from 'node:path'
import { TLSSocket, type ConnectionOptions } from 'node:tls'

import fc from 'fast-check'
import t, { type Test } from 'tap'

import { KiB, MiB } from '../../core/units.ts'
import { goPayload, optionRequest } from '../../nbd/client-handshake.ts'
import type { TlsSettings } from '../../nbd/listener-security.ts'
import type { TransportMode } from '../../net/transport.ts'
import { Authority, writePskFile } from '../support/certificates.ts'
import {
  CLIENT_FLAGS,
  RawClient,
  request,
  stage,
  temporaryFolder,
  until,
  type Stage,
} from './harness.ts'
import { STARTTLS, askForTls, certificateOf, keyOf, secure } from './tls-client.ts'
import { DF, READ, STRUCTURED_REPLY, WRITE, option } from './wire.ts'

/** Arguments: whether there are several, and what. */
type Handed = [several: boolean, data: Buffer | { readonly chunk: Buffer }[], ...rest: unknown[]]

const TRANSPORTS: TransportMode[] = ['in-place', 'copying']
const GO = optionRequest(7, goPayload('disk', []))
const EXPORT_NAME = option(1, Buffer.from('disk'))
const GRANT = Buffer.from('0003e889045565a9' + '00000005' + '00000001' + '00000000', 'hex')
const TLS_REQD = 2 ** 31 + 5

async function withKeys(t: Test): Promise<{ tls: TlsSettings; vm1: ConnectionOptions }> {
  const file = await writePskFile(path.join(await temporaryFolder(t), 'keys.psk'))
  const source = { kind: 'psk', file, user: undefined } as const
  return { tls: { source, required: true, anybody: false }, vm1: await keyOf(file, 'vm1') }
}

async function attached({ raw }: Stage, options: ConnectionOptions): Promise<RawClient> {
  const client = await raw()
  await askForTls(client)
  const one = await secure(client, options)
  await one.attachGreeted('disk')
  return one
}

/** Proves that an innocent client is served. */
async function works(client: RawClient): Promise<void> {
  client.send(request(WRITE, 1, 0, 4), Buffer.from('fine'), request(READ, 2, 0, 4))
  await client.reply()
  const { data } = await client.reply(4)
  if (data.toString() !== 'fine') throw new Error('an innocent client is served wrongly')
}

void t.test('whatever is tried in the clear, nothing of an export comes of it', async (t) => {
  const { tls } = await withKeys(t)
  const tries: [string, Buffer[]][] = [
    ['EXPORT_NAME', [EXPORT_NAME]],
    ['GO', [GO]],
    ['GO after a refused GO', [GO, GO]],
    ['structured replies first', [STRUCTURED_REPLY, GO]],
    ['requests without an export', [request(READ, 1, 0, 512)]],
    ['EXPORT_NAME behind STARTTLS', [STARTTLS, EXPORT_NAME]],
    ['GO behind STARTTLS', [STARTTLS, GO]],
    ['GO and a request behind STARTTLS', [STARTTLS, GO, request(READ, 1, 0, 512)]],
    ['STARTTLS twice', [STARTTLS, STARTTLS, GO]],
    ['STARTTLS with data, then GO', [option(5, Buffer.from('x')), GO]],
    ['ABORT behind STARTTLS', [STARTTLS, option(2), GO]],
  ]
  for (const transport of TRANSPORTS) {
    const here = await stage(t, { tls, transport, limits: { handshakeMs: 2000 } })
    for (const [what, parts] of tries) {
      for (const together of [true, false]) {
        for (const flags of [CLIENT_FLAGS, Buffer.from([0, 0, 0, 1]), Buffer.alloc(4)]) {
          const client = await here.raw()
          if (together) client.send(Buffer.concat([flags, ...parts]))
          else client.send(flags, ...parts)
          client.socket.end()
          const said = (await client.rest()).subarray(18)
          t.ok(saysNothing(said), `${what}: ${said.toString('hex')}`)
        }
      }
    }
    t.strictSame(here.device.calls, [])
  }
})

/** No more than refusals, acknowledgements of ABORT, and the grant with what TLS itself says. */
function saysNothing(said: Buffer): boolean {
  let at = 0
  while (at < said.length) {
    if (said.subarray(at, at + 20).equals(GRANT)) {
      const rest = said.subarray(at + 20)
      // An alert record, of at most the seven bytes that one has.
      return rest.length === 0 || (rest[0] === 21 && rest.length <= 7)
    }
    if (said.length < at + 20) return false
    const type = said.readUInt32BE(at + 12)
    const aborted = type === 1 && said.readUInt32BE(at + 8) === 2
    const refused = type === TLS_REQD || type === 2 ** 31 + 3
    if (!aborted && !refused) return false
    at += 20 + said.readUInt32BE(at + 16)
  }
  return true
}

void t.test(
  'what is injected behind STARTTLS is never taken for what comes through TLS',
  async (t) => {
    const { tls, vm1 } = await withKeys(t)
    for (const transport of TRANSPORTS) {
      const here = await stage(t, { tls: { ...tls, required: false }, transport })
      // Both at once: it is refused. One after the other: TLS reads it, and does not understand it.
      for (const separately of [false, true]) {
        for (const injected of [STRUCTURED_REPLY, GO, EXPORT_NAME, Buffer.from([0]), STARTTLS]) {
          const client = await here.raw()
          await client.take(18)
          client.send(CLIENT_FLAGS)
          if (separately) {
            client.send(STARTTLS)
            // It has arrived, and been consumed, when the server no longer negotiates.
            await until(() => here.server.connections.some(({ phase }) => phase === 'securing'))
            client.send(injected)
          } else client.send(Buffer.concat([STARTTLS, injected]))
          let outcome = 'secured'
          try {
            const { type } = await client.optionReply()
            if (type === 1) await secure(client, vm1)
          } catch {
            outcome = 'refused'
          }
          t.equal(outcome, 'refused', injected.toString('hex').slice(0, 40))
          await until(() => here.server.connections.length === 0)
        }
      }
      t.strictSame(here.device.calls, [])
    }
  },
)

void t.test('a handshake of TLS that does not end is ended', async (t) => {
  const { tls, vm1 } = await withKeys(t)
  for (const transport of TRANSPORTS) {
    const here = await stage(t, { tls, transport, limits: { handshakeMs: 300 } })
    const silent = await here.raw()
    await askForTls(silent)
    const half = await here.raw()
    await askForTls(half)
    half.send(Buffer.from('160301020001', 'hex'))
    const deaf = await here.raw()
    deaf.socket.pause()
    deaf.send(CLIENT_FLAGS, STARTTLS)
    const secured = await here.raw()
    await askForTls(secured)
    const mute = await secure(secured, vm1)
    const closed = [silent, half, mute].map((each) => each.closed)
    deaf.socket.resume()
    await Promise.all([...closed, deaf.closed])
    await until(() => here.server.connections.length === 0)
  }
  t.pass('each was closed')
})

void t.test('a thousand handshakes left half done harm nobody', async (t) => {
  const { tls, vm1 } = await withKeys(t)
  const here = await stage(t, { tls, limits: { handshakeMs: 5000 } })
  const innocent = await attached(here, vm1)
  for (let round = 0; round < 10; round += 1) {
    const half = await Promise.all(
      Array.from({ length: 100 }, async (_, index) => {
        const client = await here.raw()
        if (index % 5 === 0) client.send(CLIENT_FLAGS, STARTTLS)
        else await askForTls(client)
        if (index % 5 === 1) client.send(Buffer.from('1603010200010001fc0303', 'hex'))
        if (index % 5 === 2) client.send(Buffer.alloc(3000, 'garbage'))
        if (index % 5 === 3) await secure(client, vm1)
        return client
      }),
    )
    await works(innocent)
    for (const client of half) client.socket.destroy()
    await Promise.all(half.map((client) => client.closed))
  }
  await until(() => here.server.connections.length === 1)
  await works(innocent)
  innocent.socket.destroy()
  t.pass('and are forgotten')
})

void t.test('any bytes in place of TLS end that connection alone', async (t) => {
  const { tls, vm1 } = await withKeys(t)
  const here = await stage(t, { tls, limits: { handshakeMs: 1000 } })
  const innocent = await attached(here, vm1)
  const record = fc
    .tuple(fc.constantFrom(20, 21, 22, 23, 24), fc.uint8Array({ maxLength: 300 }))
    .map(([type, body]) =>
      Buffer.concat([Buffer.from([type, 3, 3, body.length >> 8, body.length & 255]), body]),
    )
  const noise = fc.uint8Array({ minLength: 1, maxLength: 400 }).map((bytes) => Buffer.from(bytes))
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.oneof(record, noise), { minLength: 1, maxLength: 4 }),
      async (parts) => {
        const client = await here.raw()
        await askForTls(client)
        client.send(...parts)
        client.socket.end()
        const said = await client.rest()
        t.ok(said.length === 0 || said[0] === 21, 'an alert, or nothing')
      },
    ),
    { numRuns: 100 },
  )
  await works(innocent)
  innocent.socket.destroy()
})

void t.test('garbage under TLS drops the client and no other, in either phase', async (t) => {
  const { tls, vm1 } = await withKeys(t)
  const here = await stage(t, { tls, limits: { handshakeMs: 2000 } })
  const innocent = await attached(here, vm1)
  const early = await here.raw()
  await askForTls(early)
  const negotiating = await secure(early, vm1)
  negotiating.send(Buffer.alloc(100, 'garbage'))
  const transmitting = await attached(here, vm1)
  transmitting.send(Buffer.alloc(100, 'garbage'))
  await Promise.all([negotiating.closed, transmitting.closed])
  await works(innocent)
  // Records that were changed on the way.
  const raw = await here.raw()
  await askForTls(raw)
  const changed = await secure(raw, vm1)
  await changed.attachGreeted('disk')
  raw.socket.write(Buffer.from('17030300140000000000000000000000000000000000000000', 'hex'))
  await changed.closed
  await works(innocent)
  innocent.socket.destroy()
  await until(() => here.server.connections.length === 0)
  t.pass('it was served all along')
})

void t.test('a client that drips byte by byte through TLS is served right', async (t) => {
  const { tls, vm1 } = await withKeys(t)
  const here = await stage(t, { tls })
  const innocent = await attached(here, vm1)
  const raw = await here.raw()
  await askForTls(raw)
  const dripper = await secure(raw, vm1)
  const bytes = Buffer.concat([
    STRUCTURED_REPLY,
    GO,
    request(WRITE, 1, 100, 20),
    Buffer.alloc(20, 'd'),
    request(READ, 2, 100, 20, DF),
  ])
  for (const byte of bytes) {
    dripper.send(Buffer.from([byte]))
    await works(innocent)
  }
  await dripper.take(20 + 32 + 34 + 20)
  t.equal((await dripper.take(20)).readUInt16BE(6), 0, 'written')
  t.equal((await dripper.take(28 + 20)).toString('latin1', 28), 'd'.repeat(20))
  dripper.socket.destroy()
  innocent.socket.destroy()
})

// Long replies meet the window's limit in bytes, short ones that in requests.
for (const [length, asked] of [
  [64 * KiB, 500],
  [1 * KiB, 3000],
] as const) {
  void t.test(
    `a client that never reads its replies of ${length} bytes under TLS is bounded`,
    async (t) => {
      const { tls, vm1 } = await withKeys(t)
      const window = { requests: 32, bytes: 1 * MiB }
      const here = await stage(t, { tls, limits: { window } })
      const greedy = await attached(here, vm1)
      greedy.socket.pause()
      const innocent = await attached(here, vm1)
      for (let cookie = 0; cookie < asked; cookie += 1)
        greedy.send(request(READ, cookie, 0, length))
      let before = -1
      while (here.device.calls.length !== before) {
        before = here.device.calls.length
        for (let turn = 0; turn < 20; turn += 1) await works(innocent)
        before += 40
      }
      const status = here.server.connections.find(({ undrainedReplies }) => undrainedReplies > 0)
      t.ok(status !== undefined && status.undrainedReplies <= window.requests)
      t.ok(status !== undefined && status.bytesHeld <= window.bytes)
      t.ok(here.pool.bytesInUse <= window.bytes + 64 * KiB, `${here.pool.bytesInUse} bytes held`)
      greedy.socket.resume()
      for (let cookie = 0; cookie < asked; cookie += 1) {
        const reply = await greedy.reply(length)
        if (reply.cookie !== cookie) t.fail(`reply ${reply.cookie} in place of ${cookie}`)
      }
      greedy.socket.destroy()
      innocent.socket.destroy()
    },
  )
}

void t.test('a flood of writes through TLS waits in the client, not here', async (t) => {
  const { tls, vm1 } = await withKeys(t)
  const window = { requests: 4, bytes: 1 * MiB }
  const here = await stage(t, { tls, limits: { window } })
  const innocent = await attached(here, vm1)
  const flooder = await attached(here, vm1)
  here.device.mode = 'held'
  const [count, length] = [64, 256 * KiB]
  for (let cookie = 0; cookie < count; cookie += 1)
    flooder.send(request(WRITE, cookie, 1 * MiB, length), Buffer.alloc(length, cookie))
  await here.device.whenHeld(4)
  here.device.mode = 'inline'
  for (let turn = 0; turn < 200; turn += 1) await works(innocent)
  t.ok(flooder.socket.writableLength > 8 * MiB, 'most of it is still with the client')
  t.ok(here.pool.bytesInUse <= window.bytes + 64 * KiB)
  here.device.release()
  for (let cookie = 0; cookie < count; cookie += 1) t.equal((await flooder.reply()).error, 0)
  flooder.socket.destroy()
  innocent.socket.destroy()
})

void t.test('replies that a client does not take are not encrypted ahead of time', async (t) => {
  const { tls, vm1 } = await withKeys(t)
  const here = await stage(t, { tls })
  const client = await attached(here, vm1)
  client.socket.pause()
  // What a stream of Node hands to TLS, which encrypts it at once: one chunk, or several.
  let handed = 0
  const streams = Socket.prototype as unknown as Record<'_writeGeneric', (...given: Handed) => void>
  const { _writeGeneric: original } = streams
  t.teardown(() => (streams._writeGeneric = original))
  streams._writeGeneric = function (this: unknown, ...given: Handed) {
    const [, data] = given
    const chunks = Array.isArray(data) ? data.map(({ chunk }) => chunk) : [data]
    if (this instanceof TLSSocket && this !== client.socket)
      handed += chunks.reduce((sum, { length }) => sum + length, 0)
    original.apply(this, given)
  }
  const [count, length] = [16, 512 * KiB]
  for (let cookie = 0; cookie < count; cookie += 1)
    client.send(request(READ, cookie, cookie * 4, length))
  await until(() => here.server.connections[0]?.requests === count && handed > 0)
  t.ok(handed < 400 * KiB, `${handed} bytes`)
  client.socket.resume()
  for (let cookie = 0; cookie < count; cookie += 1)
    t.equal((await client.reply(length)).cookie, cookie)
  client.socket.destroy()
})

void t.test(
  'a client that vanishes under TLS with requests in flight leaves nothing behind',
  async (t) => {
    const { tls, vm1 } = await withKeys(t)
    const here = await stage(t, { tls })
    here.device.mode = 'held'
    const client = await here.raw()
    await askForTls(client)
    const one = await secure(client, vm1)
    await one.attachGreeted('disk')
    for (let cookie = 0; cookie < 10; cookie += 1) {
      one.send(request(READ, cookie, 0, 100 * KiB))
      one.send(request(WRITE, cookie, cookie * 4, 4), Buffer.from('left'))
    }
    one.send(request(WRITE, 99, 1 * MiB, 200 * KiB), Buffer.alloc(100 * KiB, 1))
    await here.device.whenHeld(20)
    client.socket.destroy()
    await client.closed
    here.device.release()
    await until(() => here.server.connections.length === 0)
    t.equal(here.pool.bytesInUse, 0)
    t.equal(
      here.device.bytes.toString('latin1', 0, 8),
      'leftleft',
      'writes that arrived have landed',
    )
    t.equal(here.device.bytes[1 * MiB], 0, 'half a write has not')
  },
)

void t.test(
  'by certificate, too, a stranger’s half handshakes do not keep others out',
  async (t) => {
    const folder = await temporaryFolder(t)
    const authority = await Authority.make(t, path.join(folder, 'ca'))
    const directory = await authority.issue(path.join(folder, 'server'), 'server')
    const options = await certificateOf(
      await authority.issue(path.join(folder, 'client'), 'client'),
    )
    const tls: TlsSettings = { source: { kind: 'x509', directory }, required: true, anybody: false }
    const here = await stage(t, { tls, limits: { handshakeMs: 3000 } })
    const strangers = await Promise.all(
      Array.from({ length: 200 }, async () => {
        const client = await here.raw()
        await askForTls(client)
        return client
      }),
    )
    const innocent = await attached(here, options)
    await works(innocent)
    await Promise.all(strangers.map((each) => each.closed))
    await works(innocent)
    innocent.socket.destroy()
    t.pass('they were closed in time')
  },
)
