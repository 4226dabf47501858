/** The replication port and those who dial it, over real sockets: only who proves itself is heard, and both sides say why. */

import { once } from 'node:events'
import net, { type Socket } from 'node:net'
import path from 'node:path'
import tls, { type TLSSocket } from 'node:tls'

import t, { type Test } from 'tap'

import { SILENT, type Logger } from '../../core/logger.ts'
import { KiB } from '../../core/units.ts'
import { Credentials, type CredentialSource } from '../../net/credentials.ts'
import { dialTo, type LinkSecurity } from '../../replication/dial.ts'
import type { Link } from '../../replication/environment.ts'
import { ReplicationListener } from '../../replication/listener.ts'
import { encodeFrame, frame, type Frame } from '../../replication/machine/frame.ts'
import {
  decodeRefusal,
  encodeHello,
  PROTOCOL,
  type Hello,
} from '../../replication/machine/handshake.ts'
import { Authority, writePskFile } from '../support/certificates.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'

const LOOPBACK = '127.0.0.1'

const HELLO: Hello = {
  protocol: PROTOCOL,
  group: 'vm1',
  mode: 'remus',
  role: 'primary',
  generation: 'g1',
  history: [],
  replica: 'one',
  checkpoint: 0,
  announced: 0,
  consistent: true,
  wrote: true,
  term: 1,
  disks: [{ name: 'disk', size: 4096 }],
  capacity: 0,
  durable: false,
  discard: null,
  identical: false,
  features: [],
  ack: 'sent',
}

interface Line {
  readonly message: string
  readonly details: Readonly<Record<string, unknown>>
}

/** What was logged, to be awaited line by line. */
class Lines implements Logger {
  readonly all: Line[] = []
  #wake: () => void = () => undefined

  readonly #take = (details: object, message: string): void => {
    this.all.push({ message, details: details as Line['details'] })
    this.#wake()
  }
  readonly debug = this.#take
  readonly info = this.#take
  readonly warn = this.#take
  readonly error = this.#take

  async find(message: string, at = 0): Promise<Line> {
    for (;;) {
      const found = this.all.filter((line) => line.message === message)[at]
      if (found !== undefined) return found
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }
}

const REFUSED = 'replication connection refused'

/** A secondary's port with one group, which takes every hello. */
class Port {
  readonly log = new Lines()
  readonly listener: ReplicationListener
  readonly hellos: Hello[] = []
  readonly frames: Frame[] = []
  readonly #waiting: ((link: Link) => void)[] = []

  private constructor(port: number, deadlineMs?: number) {
    this.listener = new ReplicationListener(LOOPBACK, port, this.log, deadlineMs)
  }

  static async open(t: Test, security?: LinkSecurity, deadlineMs?: number): Promise<Port> {
    const [port] = await freePorts(1)
    const opened = new Port(port!, deadlineMs)
    await opened.listener.listen()
    if (security !== undefined) opened.listener.secure(security)
    opened.listener.add('vm1', {
      take: (link, hello) => {
        opened.hellos.push(hello)
        for (const wake of opened.#waiting.splice(0)) wake(link)
        return {
          frame: (arrived) => {
            opened.frames.push({ ...arrived, payload: Buffer.from(arrived.payload) })
            link.send(frame('heartbeat'))
          },
          closed: () => undefined,
        }
      },
    })
    opened.listener.start()
    t.teardown(() => opened.listener.close())
    return opened
  }

  taken(): Promise<Link> {
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  connect(t: Test): Socket {
    const socket = net.connect(this.listener.port, LOOPBACK)
    socket.on('error', () => undefined)
    t.teardown(() => socket.destroy())
    return socket
  }
}

interface Dialled {
  readonly link: Link
  readonly closed: Promise<string>
  readonly next: () => Promise<Frame>
}

/** Dials as a primary does. @throws Error with the reason when it cannot connect */
function dial(
  t: Test,
  port: number,
  security?: LinkSecurity,
  deadlineMs = 60_000,
): Promise<Dialled> {
  return new Promise((resolve, reject) => {
    const target = { host: LOOPBACK, port, security, logger: SILENT, deadlineMs }
    const giveUp = dialTo(target)(
      (open) => {
        const frames: Frame[] = []
        let wake: () => void = () => undefined
        const closed = new Promise<string>((done) => {
          const link = open({
            frame: (arrived) => {
              frames.push({ ...arrived, payload: Buffer.from(arrived.payload) })
              wake()
            },
            closed: done,
          })
          t.teardown(() => link.close('the test is over'))
          const next = async (): Promise<Frame> => {
            while (frames.length === 0) await new Promise<void>((woken) => (wake = woken))
            return frames.shift()!
          }
          setImmediate(() => resolve({ link, closed, next }))
        })
      },
      (reason) => reject(new Error(reason)),
    )
    t.teardown(giveUp)
  })
}

async function security(
  source: CredentialSource,
  side: 'server' | 'client',
  peerName?: string,
): Promise<LinkSecurity> {
  return { credentials: await Credentials.load({ source, side, minVersion: 'TLSv1.3' }), peerName }
}

interface Pair {
  readonly server: LinkSecurity
  readonly client: LinkSecurity
}

async function certificates(t: Test): Promise<Pair & { folder: string; authority: Authority }> {
  const folder = await tempDirectory(t)
  const authority = await Authority.make(t, path.join(folder, 'ca'))
  const good = path.join(folder, 'good')
  await authority.issue(good, 'server')
  await authority.issue(good, 'client')
  const source = { kind: 'x509', directory: good } as const
  return {
    folder,
    authority,
    server: await security(source, 'server'),
    client: await security(source, 'client'),
  }
}

async function keys(t: Test): Promise<Pair> {
  const file = await writePskFile(path.join(await tempDirectory(t), 'keys.psk'))
  const source = { kind: 'psk', file, user: undefined } as const
  return { server: await security(source, 'server'), client: await security(source, 'client') }
}

for (const [kind, make] of [
  ['certificates', certificates],
  ['pre-shared keys', keys],
] as const) {
  void t.test(`with ${kind} frames of every size pass, both ways and in order`, async (t) => {
    const { server, client } = await make(t)
    const port = await Port.open(t, server)
    const taken = port.taken()
    const { link, next } = await dial(t, port.listener.port, client)
    link.send(frame('hello', { payload: encodeHello(HELLO) }))
    const other = await taken
    t.match((await port.log.find('a primary has proved itself')).details, { peer: other.peer })
    t.match(other.peer, /^127\.0\.0\.1:\d+$/)
    const sizes = [0, 512, 16 * KiB, 16 * KiB + 1, 256 * KiB, 7]
    let handed = 0
    for (const [index, size] of sizes.entries()) {
      const payload = Buffer.alloc(size, index + 1)
      link.sendData(frame('write', { position: index * 4096, extent: size, payload }), () => {
        handed += 1
      })
    }
    for (let answers = 0; answers < sizes.length; answers += 1) await next()
    t.equal(handed, sizes.length)
    t.same(
      port.frames.map(({ payload }) => payload.length),
      sizes,
    )
    t.ok(port.frames.every(({ payload }, index) => payload.every((byte) => byte === index + 1)))
  })
}

void t.test(
  'a link of which one side goes away without a word ends on the other one',
  async (t) => {
    const { server, client } = await certificates(t)
    const port = await Port.open(t, server)
    const taken = port.taken()
    const dialled = await dial(t, port.listener.port, client)
    dialled.link.send(frame('hello', { payload: encodeHello(HELLO) }))
    ;(await taken).close('the test ends it')
    t.match(await dialled.closed, /closed/)
  },
)

void t.test('who cannot prove itself is not heard, and both sides say why', async (t) => {
  const { server, client, folder, authority } = await certificates(t)
  const other = await Authority.make(t, path.join(folder, 'other-ca'))
  const foreign = path.join(folder, 'foreign')
  for (const side of ['server', 'client'] as const) await other.issue(foreign, side)
  const stranger = await security({ kind: 'x509', directory: foreign }, 'client')
  const elsewhere = await authority.issue(path.join(folder, 'elsewhere'), 'server', {
    names: 'DNS:vm-z',
  })
  const misnamed = await security({ kind: 'x509', directory: elsewhere }, 'server')
  const psk = await keys(t)
  const otherKeys = await keys(t)
  const strict = { ...server, peerName: 'vm-a.example' }
  const cases: [string, LinkSecurity | undefined, LinkSecurity | undefined, RegExp, RegExp][] = [
    [
      'a primary without credentials',
      server,
      undefined,
      /TLS: it does not speak TLS/,
      /the other side speaks TLS, and this side has no credentials.*tls-creds=/,
    ],
    [
      'a secondary without credentials',
      undefined,
      client,
      /the other side speaks TLS, and this side has no credentials/,
      /TLS: it ended the connection before it was secured/,
    ],
    ['a primary of another authority', server, stranger, /./, /TLS: its certificate is not signed/],
    [
      'a primary of another name',
      strict,
      client,
      /TLS: its certificate is for .* not for vm-a\.example/,
      /does not accept this side: TLS: its certificate is for .* not for vm-a/,
    ],
    [
      'a secondary of another name',
      misnamed,
      client,
      /TLS: it ended/,
      /TLS: its certificate is for DNS:vm-z, not for 127\.0\.0\.1/,
    ],
    [
      'a primary with another key',
      psk.server,
      otherKeys.client,
      /TLS: its pre-shared key is another one.*vm1/,
      /TLS: it does not accept our pre-shared key/,
    ],
    [
      'a primary with a key where certificates count',
      server,
      psk.client,
      /TLS: it ended/,
      /TLS: it shows a certificate/,
    ],
    [
      'a primary with a certificate where keys count',
      psk.server,
      client,
      /TLS: it did not offer a pre-shared key/,
      /TLS: it does not accept our kind of credentials/,
    ],
  ]
  for (const [who, ours, theirs, secondarySays, primarySays] of cases) {
    await t.test(who, async (t) => {
      const port = await Port.open(t, ours)
      const why = dial(t, port.listener.port, theirs).then(async ({ link, closed, next }) => {
        link.send(frame('hello', { payload: encodeHello(HELLO) }))
        const first = await Promise.race([next(), closed])
        return typeof first === 'string' ? first : decodeRefusal(first.payload).reason
      })
      t.match(await why.catch((error: unknown) => String(error)), primarySays)
      const { details } = await port.log.find(REFUSED)
      t.match(details['reason'], secondarySays)
      t.match(details['peer'], /^127\.0\.0\.1:\d+$/)
      t.same(port.hellos, [], 'no group has heard of it')
      t.equal(
        port.log.all.filter(({ message }) => message === REFUSED).length,
        1,
        'it is logged once',
      )
    })
  }
})

void t.test('a client without a certificate is told so, and nothing else', async (t) => {
  const { server } = await certificates(t)
  const port = await Port.open(t, server)
  const socket = tls.connect({ socket: port.connect(t), rejectUnauthorized: false })
  socket.on('error', () => undefined)
  socket.write(encodeFrame(frame('hello', { payload: encodeHello(HELLO) })))
  const chunks: Buffer[] = []
  socket.on('data', (chunk: Buffer) => chunks.push(chunk))
  await once(socket, 'close')
  t.equal(
    decodeRefusal(Buffer.concat(chunks).subarray(32)).reason,
    'the secondary does not accept this side: TLS: it showed no certificate',
  )
  t.same(port.hellos, [])
})

void t.test('a primary that does not trust the secondary leaves a hint behind', async (t) => {
  const { server, folder, authority } = await certificates(t)
  const files = await authority.issue(path.join(folder, 'again'), 'client')
  const { credentials } = await security({ kind: 'x509', directory: files }, 'client')
  const port = await Port.open(t, server)
  await t.rejects(dial(t, port.listener.port, { credentials, peerName: 'other' }), /not for other/)
  const { details } = await port.log.find(REFUSED)
  t.match(details['reason'], /TLS: it ended the connection/)
})

void t.test('strangers that stall in the handshake are bounded in number and time', async (t) => {
  const { server, client } = await certificates(t)
  const port = await Port.open(t, server)
  const crowd: Socket[] = []
  for (let index = 0; index < 100; index += 1) {
    const socket = port.connect(t)
    await once(socket, 'connect')
    // The start of a ClientHello, whose rest never comes.
    if (index % 2 === 0) socket.write(Buffer.from('160301020001', 'hex'))
    crowd.push(socket)
  }
  t.match(
    (await port.log.find(REFUSED, 67)).details['reason'],
    /too many connections without a hello/,
  )
  const taken = port.taken()
  const { link } = await dial(t, port.listener.port, client)
  link.send(frame('hello', { payload: encodeHello(HELLO) }))
  await taken
  t.pass('who proves itself gets through')
  await port.listener.close()
  for (const socket of crowd) if (!socket.closed) await once(socket.resume(), 'close')
})

void t.test('resets at every step of a handshake are survived', async (t) => {
  const { server } = await certificates(t)
  const port = await Port.open(t, server)
  const hello = await clientHello()
  for (let cut = 0; cut <= hello.length; cut += 13) {
    const socket = port.connect(t)
    await once(socket, 'connect')
    await new Promise<void>((written) => socket.write(hello.subarray(0, cut), () => written()))
    socket.resetAndDestroy()
    await port.log.find(REFUSED, cut / 13)
  }
  t.ok(port.log.all.every(({ details }) => /^TLS: it ended/.test(String(details['reason']))))
})

void t.test('garbage in place of a handshake ends that connection alone', async (t) => {
  const { server } = await certificates(t)
  const port = await Port.open(t, server)
  const hello = await clientHello()
  for (let index = 0; index < 40; index += 1) {
    const broken = Buffer.from(hello)
    const at = (index * 37) % broken.length
    broken.writeUInt8(broken.readUInt8(at) ^ 0xff, at)
    const socket = port.connect(t)
    socket.end(broken)
    await once(socket.resume(), 'close')
  }
  await port.log.find(REFUSED, 39)
  t.same(port.hellos, [])
})

void t.test('the handshake counts toward the deadline of the hello', async (t) => {
  const { server, client } = await certificates(t)
  const port = await Port.open(t, server, 1)
  const stalled = port.connect(t)
  t.match((await port.log.find(REFUSED)).details['reason'], 'no hello in time')
  if (!stalled.closed) await once(stalled.resume(), 'close')
  // Long enough for the handshake, however slow this machine is, it must still end who says no hello after it.
  for (let deadlineMs = 50, after = false; !after; deadlineMs *= 2) {
    const patient = await Port.open(t, server, deadlineMs)
    await dial(t, patient.listener.port, client).then(
      async ({ closed }) => t.match(await closed, /closed/),
      () => undefined,
    )
    const { details } = await patient.log.find(REFUSED)
    t.equal(details['reason'], 'no hello in time')
    after = details['identity'] !== undefined
  }
})

void t.test('a secondary that stalls is given up by its primary', async (t) => {
  const { client } = await certificates(t)
  const mute = net.createServer((socket) => socket.on('error', () => undefined))
  t.teardown(() => mute.close())
  mute.listen(0, LOOPBACK)
  await once(mute, 'listening')
  const { port } = mute.address() as net.AddressInfo
  await t.rejects(dial(t, port, client, 1), /did not finish the handshake in time/)
})

/** The first flight of a TLS client, as bytes. */
async function clientHello(): Promise<Buffer> {
  const listener = net.createServer()
  listener.listen(0, LOOPBACK)
  await once(listener, 'listening')
  const { port } = listener.address() as net.AddressInfo
  const client: TLSSocket = tls.connect({ port, host: LOOPBACK, rejectUnauthorized: false })
  client.on('error', () => undefined)
  const [accepted] = (await once(listener, 'connection')) as [Socket]
  const [flight] = (await once(accepted, 'data')) as [Buffer]
  accepted.destroy()
  client.destroy()
  listener.close()
  return flight
}
