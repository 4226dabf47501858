/** Both sides of a handshake over real sockets: who is let in, and what either side says where one is not. */

import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import net, { type Socket } from 'node:net'
import path from 'node:path'
import tls, { type ConnectionOptions, type TLSSocket } from 'node:tls'

import t, { type Test } from 'tap'

import { SILENT } from '../../core/logger.ts'
import { Credentials, type CredentialSource, type Material } from '../../net/credentials.ts'
import { secureAccepted, secureDialled } from '../../net/secure-socket.ts'
import { Authority, writePskFile, type CertificateOptions } from '../support/certificates.ts'
import { tempDirectory } from '../support/scope.ts'

const LOOPBACK = '127.0.0.1'

type Outcome =
  | { readonly socket: TLSSocket; readonly identity: string }
  | { readonly reason: string; readonly open: boolean }

/** One side's half of a handshake on `raw`. */
type Half = (raw: Socket) => Promise<Outcome>

function server(material: Material, peerName?: string): Half {
  return (raw) =>
    new Promise((resolve) => {
      secureAccepted(
        raw,
        material,
        { peerName },
        {
          secured: (socket, identity) => resolve({ socket, identity }),
          failed: (reason, socket) => resolve({ reason, open: socket?.destroy() !== undefined }),
        },
      )
    })
}

function client(material: Material, peerName = LOOPBACK): Half {
  return (raw) =>
    new Promise((resolve) => {
      secureDialled(raw, material, peerName, {
        secured: (socket, identity) => resolve({ socket, identity }),
        failed: (reason) => resolve({ reason, open: false }),
      })
    })
}

/** A TLS client that is not ours, and may break our rules. */
function foreignClient(options: ConnectionOptions): Half {
  return (raw) =>
    new Promise((resolve) => {
      const socket = tls.connect({ ...options, socket: raw, rejectUnauthorized: false })
      socket.on('error', ({ message }: Error) => resolve({ reason: message, open: false }))
      socket.on('secureConnect', () => resolve({ socket, identity: socket.getProtocol() ?? '' }))
    })
}

/** Speaks, but no TLS; gives what came back until the other side ended the connection. */
function plain(bytes: string): Half {
  return async (raw) => {
    let answer = ''
    raw.on('error', () => undefined)
    raw.setEncoding('latin1').on('data', (text: string) => (answer += text))
    raw.write(bytes, 'latin1')
    await once(raw.resume(), 'close')
    return { reason: answer, open: false }
  }
}

/** Connects, and ends the connection after `bytes`. */
function leaving(bytes: string): Half {
  return (raw) => {
    raw.on('error', () => undefined)
    raw.write(bytes, () => raw.resetAndDestroy())
    return Promise.resolve({ reason: 'left', open: false })
  }
}

async function load(
  source: CredentialSource,
  side: 'server' | 'client',
  minVersion: 'TLSv1.2' | 'TLSv1.3' = 'TLSv1.3',
): Promise<Material> {
  return (await Credentials.load({ source, side, minVersion })).current(SILENT)
}

/** @returns what the accepting and the connecting side make of it */
async function meet(t: Test, accepting: Half, connecting: Half): Promise<[Outcome, Outcome]> {
  const listener = net.createServer({ pauseOnConnect: true })
  listener.listen(0, LOOPBACK)
  await once(listener, 'listening')
  const { port } = listener.address() as net.AddressInfo
  const accepted = once(listener, 'connection') as Promise<[Socket]>
  const dialled = net.connect(port, LOOPBACK)
  await once(dialled, 'connect')
  const [raw] = await accepted
  t.teardown(() => {
    raw.destroy()
    dialled.destroy()
    listener.close()
  })
  return Promise.all([accepting(raw), connecting(dialled)])
}

function reason(outcome: Outcome): string {
  return 'reason' in outcome ? outcome.reason : `secured with ${outcome.identity}`
}

interface World {
  readonly good: string
  /** Of another authority, and complete. */
  readonly foreign: string
  readonly server: Material
  readonly client: Material
  readonly make: (
    name: string,
    side: 'server' | 'client',
    options: CertificateOptions,
  ) => Promise<string>
  /** Writes a revocation list into `good`. */
  readonly revoke: (certificate: string) => Promise<void>
}

async function world(t: Test): Promise<World> {
  const folder = await tempDirectory(t)
  const at = (name: string): string => path.join(folder, name)
  const authority = await Authority.make(t, at('ca'))
  const other = await Authority.make(t, at('other-ca'))
  const good = at('good')
  const foreign = at('foreign')
  for (const side of ['server', 'client'] as const) {
    await authority.issue(good, side)
    await other.issue(foreign, side)
  }
  return {
    good,
    foreign,
    server: await load({ kind: 'x509', directory: good }, 'server'),
    client: await load({ kind: 'x509', directory: good }, 'client'),
    make: (name, side, options) => authority.issue(at(name), side, options),
    revoke: (certificate) => authority.revoke(good, certificate),
  }
}

async function filesOf(folder: string, side: 'server' | 'client'): Promise<ConnectionOptions> {
  const [cert, key] = await Promise.all(
    [`${side}-cert.pem`, `${side}-key.pem`].map((name) => readFile(path.join(folder, name))),
  )
  return { cert: cert!, key: key! }
}

/** The same proof, but trusting `authority`: what no loader would let through. */
function trusting(material: Material, authority: Material): Material {
  return { ...material, context: { ...material.context, ca: authority.context.ca } }
}

void t.test('certificates of one authority let each other in, and bytes pass', async (t) => {
  const { server: ours, client: theirs } = await world(t)
  const [accepted, dialled] = await meet(t, server(ours, 'localhost'), client(theirs))
  t.match(reason(accepted), /secured with certificate "client", serial 0/)
  t.match(reason(dialled), /secured with certificate "server", serial 0/)
  if (!('socket' in accepted) || !('socket' in dialled)) return
  t.equal(accepted.socket.getProtocol(), 'TLSv1.3')
  for (const [from, to] of [
    [accepted.socket, dialled.socket],
    [dialled.socket, accepted.socket],
  ] as const) {
    from.write('hello')
    const [arrived] = (await once(to, 'data')) as [Buffer]
    t.equal(arrived.toString(), 'hello')
  }
  dialled.socket.end()
  await once(accepted.socket, 'end')
})

void t.test('a key that both sides have lets each other in', async (t) => {
  const file = await writePskFile(path.join(await tempDirectory(t), 'keys.psk'), ['vm1', 'vm2'])
  const source = (user?: string): CredentialSource => ({ kind: 'psk', file, user })
  const [accepted, dialled] = await meet(
    t,
    server(await load(source(), 'server')),
    client(await load(source('vm2'), 'client')),
  )
  t.equal(reason(accepted), 'secured with user "vm2"')
  t.equal(reason(dialled), 'secured with the holder of the same key')
})

void t.test('who does not prove itself by a certificate is turned away, and why', async (t) => {
  const { server: ours, client: theirs, good, foreign, make, revoke } = await world(t)
  const stranger = await load({ kind: 'x509', directory: foreign }, 'client')
  const impostor = await load({ kind: 'x509', directory: foreign }, 'server')
  const expired = await filesOf(await make('expired', 'client', { days: -1 }), 'client')
  const future = await filesOf(good, 'server')
  const revoked = await make('revoked', 'client', { subject: 'revoked' })
  await revoke(path.join(revoked, 'client-cert.pem'))
  const strict = await load({ kind: 'x509', directory: good }, 'server')
  const file = await writePskFile(path.join(await tempDirectory(t), 'keys.psk'))
  const psk = await load({ kind: 'psk', file, user: undefined }, 'client')
  const cases: [string, Half, Half, RegExp, RegExp][] = [
    [
      'a client of another authority',
      server(ours),
      client(trusting(stranger, theirs)),
      /^its certificate is not signed by the ca-cert.pem here \(certificate "client", serial/,
      /^secured/,
    ],
    [
      'a server of another authority',
      server(trusting(impostor, ours)),
      client(theirs),
      /^it ended the connection/,
      /^its certificate is not signed by the ca-cert.pem here/,
    ],
    [
      'a client whose certificate has expired',
      server(ours),
      foreignClient(expired),
      /^its certificate has expired \(certificate "client"/,
      /TLSv1.3/,
    ],
    [
      'a client that shows a certificate for servers',
      server(ours),
      foreignClient(future),
      /^its certificate is not made for this use/,
      /TLSv1.3/,
    ],
    [
      'a client whose certificate was revoked',
      server(strict),
      client(await load({ kind: 'x509', directory: revoked }, 'client')),
      /^its certificate was revoked \(certificate "revoked"/,
      /^secured/,
    ],
    ['a client without a certificate', server(ours), foreignClient({}), /^it showed no cert/, /./],
    [
      'a client with another name',
      server(ours, 'vm-a.example'),
      client(theirs),
      /^its certificate is for DNS:localhost, IP Address:127.0.0.1, not for vm-a.example .certificate "client"/,
      /^secured/,
    ],
    [
      'a server with another name',
      server(ours),
      client(theirs, 'vm-b.example'),
      /^it ended the connection/,
      /^its certificate is for DNS:localhost.*, not for vm-b\.example$/,
    ],
    [
      'a client with a pre-shared key',
      server(ours),
      client(psk),
      /^it ended the connection/,
      /^it shows a certificate, and this side has a pre-shared key/,
    ],
    [
      'a client with a pre-shared key that would trust the authority',
      server(ours),
      client(trusting(psk, theirs)),
      /^it ended the connection/,
      /it shows a certificate, and this side has a pre-shared key$/,
    ],
    [
      'a client of an old version',
      server(ours),
      foreignClient({ maxVersion: 'TLSv1.2' }),
      /too old/,
      /alert protocol version/,
    ],
    [
      'a client that speaks no TLS',
      server(ours),
      plain('GET / HTTP/1.1\r\n\r\n'),
      /^it does not speak TLS$/,
      /^\x15\x03/,
    ],
    [
      'a client that speaks noise',
      server(ours),
      plain('\0\0\0\x20\xc0\x10\x01\0'.repeat(20)),
      /^it does not speak TLS$/,
      /^\x15\x03/,
    ],
    [
      'a server that speaks no TLS',
      plain('\x00\x00\x00\x00\xc0\x10'),
      client(theirs),
      /./,
      /^it does not speak TLS$/,
    ],
    [
      'a server that leaves',
      leaving(''),
      client(theirs),
      /./,
      /^it ended the connection before it was secured$/,
    ],
    [
      'a client that leaves',
      server(ours),
      leaving(''),
      /^it ended the connection before it was secured$/,
      /./,
    ],
    [
      'a client that is reset in mid-handshake',
      server(ours),
      leaving('\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03'),
      /^it ended the connection before it was secured$/,
      /./,
    ],
  ]
  for (const [who, accepting, connecting, accepted, dialled] of cases) {
    await t.test(who, async (t) => {
      const outcomes = await meet(t, accepting, connecting)
      t.match(reason(outcomes[0]), accepted)
      t.match(reason(outcomes[1]), dialled)
    })
  }
})

void t.test('who does not prove itself by a key is turned away, and why', async (t) => {
  const folder = await tempDirectory(t)
  const file = await writePskFile(path.join(folder, 'a.psk'), ['vm1'])
  const other = await writePskFile(path.join(folder, 'b.psk'), ['vm1'])
  const unknown = await writePskFile(path.join(folder, 'c.psk'), ['eve'])
  const from = (file: string): CredentialSource => ({ kind: 'psk', file, user: undefined })
  const { server: certified, client: certificate } = await world(t)
  for (const minVersion of ['TLSv1.2', 'TLSv1.3'] as const) {
    const ours = await load(from(file), 'server', minVersion)
    const old = async (file: string): Promise<Half> => {
      const material = await load(from(file), 'client', minVersion)
      const context = { ...material.context, maxVersion: minVersion }
      return client({ ...material, context })
    }
    const cases: [string, Half, Half, RegExp, RegExp][] = [
      ['the right one', server(ours), await old(file), /^secured/, /^secured/],
      [
        'another key',
        server(ours),
        await old(other),
        /pre-shared key is another one.*"vm1"/,
        /^it does not accept our pre-shared key/,
      ],
      [
        'an unknown user',
        server(ours),
        await old(unknown),
        /"eve"/,
        /^it does not accept .*pre-shared key/,
      ],
      ['a certificate', server(ours), client(certificate), /./, /^it does not accept/],
      [
        'a server with a certificate',
        server(certified),
        await old(file),
        /./,
        /^it shows a certificate|^it does not accept our version|^it does not accept our kind/,
      ],
    ]
    for (const [who, accepting, connecting, accepted, dialled] of cases) {
      await t.test(`${who}, ${minVersion}`, async (t) => {
        const outcomes = await meet(t, accepting, connecting)
        t.match(reason(outcomes[0]), accepted)
        t.match(reason(outcomes[1]), dialled)
      })
    }
  }
})

void t.test(
  'no session is resumed: the second connection proves itself as the first one did',
  async (t) => {
    const { good } = await world(t)
    const material = await load({ kind: 'x509', directory: good }, 'server', 'TLSv1.2')
    const files = await filesOf(good, 'client')
    for (const maxVersion of ['TLSv1.2', 'TLSv1.3'] as const) {
      const options: ConnectionOptions = { ...files, maxVersion }
      const [accepted, first] = await meet(t, server(material), foreignClient(options))
      if (!('socket' in accepted) || !('socket' in first)) throw new Error('both are secured')
      // What a server of TLS 1.3 gives for resumption comes before its first data.
      accepted.socket.write('hello')
      await once(first.socket, 'data')
      const session = first.socket.getSession()
      const again = { ...options, ...(session === undefined ? {} : { session }) }
      const [, second] = await meet(t, server(material), foreignClient(again))
      if (!('socket' in second)) throw new Error('the second one is secured as well')
      t.equal(second.socket.getProtocol(), maxVersion)
      t.notOk(second.socket.isSessionReused())
    }
  },
)

void t.test(
  'a client of TLS 1.2, where it is let in, cannot ask for a new handshake',
  async (t) => {
    const { good } = await world(t)
    const material = await load({ kind: 'x509', directory: good }, 'server', 'TLSv1.2')
    const options: ConnectionOptions = { ...(await filesOf(good, 'client')), maxVersion: 'TLSv1.2' }
    const [, dialled] = await meet(t, server(material), foreignClient(options))
    if (!('socket' in dialled)) throw new Error('the client is secured')
    const error = await new Promise<Error | null>((resolve) => {
      dialled.socket.once('error', resolve)
      dialled.socket.renegotiate({}, resolve)
    })
    t.match(error?.message, /no renegotiation/)
  },
)

void t.test('both give up by destroying the socket, and are told so once', async (t) => {
  const { server: ours, client: theirs } = await world(t)
  const stalled: Half = () => Promise.resolve({ reason: 'stalled', open: true })
  const destroyed =
    (half: Half): Half =>
    (raw) => {
      const outcome = half(raw)
      setImmediate(() => raw.destroy())
      return outcome
    }
  const cases: [Half, Half][] = [
    [destroyed(server(ours)), stalled],
    [stalled, destroyed(client(theirs))],
  ]
  for (const halves of cases) {
    const reasons = (await meet(t, ...halves)).map(reason).sort()
    t.same(reasons, ['it ended the connection before it was secured', 'stalled'])
  }
  const gone = async (raw: Socket, half: Half): Promise<Outcome> => {
    raw.destroy()
    return half(raw)
  }
  const late = await meet(
    t,
    (raw) => gone(raw, server(ours)),
    (raw) => gone(raw, client(theirs)),
  )
  for (const outcome of late) t.match(reason(outcome), /^it ended the connection/)
})
