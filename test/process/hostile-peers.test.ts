/** What a running pair does when strangers, misfits and noise arrive on its sockets: refuse with a reason, and go on. */

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import net from 'node:net'
import t, { type Test } from 'tap'
import { frame, encodeFrame, type Frame } from '../../replication/machine/frame.ts'
import { FrameReader } from '../../replication/machine/frame-reader.ts'
import {
  decodeRefusal,
  encodeHello,
  PROTOCOL,
  type Hello,
  type Refusal,
} from '../../replication/machine/handshake.ts'
import { NbdClient } from '../../nbd/client.ts'
import { colotap, serveColotap } from '../support/colotap.ts'
import { createEmptyImage } from '../support/images.ts'
import {
  groupState,
  protection,
  startHost,
  startPair,
  type ReplicaPair,
} from '../support/replica-pair.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'

const SIZE = 1024 * 1024

const STRANGER: Hello = {
  protocol: PROTOCOL,
  group: 'test',
  mode: 'colo',
  role: 'primary',
  generation: 'of a stranger',
  history: [],
  replica: 'stranger',
  checkpoint: 0,
  announced: 0,
  consistent: true,
  wrote: true,
  term: 1,
  disks: [{ name: 'disk', size: SIZE }],
  capacity: 0,
  durable: false,
  discard: null,
  identical: false,
  features: [],
  ack: 'sent',
}

/** Connects to the replication port, sends `bytes`, and gives the frames that came back before the end. */
async function say(port: number, bytes: Buffer): Promise<Frame[]> {
  const socket = net.connect(port, '127.0.0.1')
  const frames: Frame[] = []
  const reader = new FrameReader()
  socket.on('data', (chunk) => {
    reader.push(
      chunk,
      (arrived) => frames.push({ ...arrived, payload: Buffer.from(arrived.payload) }) > 0,
    )
  })
  socket.on('error', () => undefined)
  socket.write(bytes)
  await once(socket, 'close')
  return frames
}

async function refusal(port: number, hello: Hello): Promise<Refusal> {
  const [answer] = await say(port, encodeFrame(frame('hello', { payload: encodeHello(hello) })))
  if (answer?.type !== 'refuse')
    throw new Error(`the answer is ${answer?.type ?? 'nothing'}, not a refusal`)
  return decodeRefusal(answer.payload)
}

async function stillProtected(t: Test, pair: ReplicaPair): Promise<void> {
  t.equal((await groupState(pair.secondary.qmp)).protection, 'protected')
  const before = (await groupState(pair.primary.qmp)).checkpoint
  const { checkpoint } = (await pair.primary.qmp.execute('replication-checkpoint')) as {
    checkpoint: number
  }
  t.equal(checkpoint, before + 1, 'a checkpoint still works')
}

void t.test(
  'strangers on the replication port are refused with the reason, and the pair goes on',
  async (t) => {
    const pair = await startPair(t, { mode: 'colo', disks: { disk: SIZE } })
    // Disks that differ may be added or grown while both sides run: a primary comes again.
    const cases: [string, Partial<Hello>, Refusal['code'], RegExp][] = [
      [
        'of another protocol version',
        { protocol: { min: 7, max: 9 } },
        'version',
        /primary speaks 7-9, the secondary 1-1/,
      ],
      ['of another group', { group: 'other' }, 'configuration', /no group "other".*test/],
      ['of another mode', { mode: 'remus' }, 'configuration', /modes differ/],
      [
        'with a disk of another size',
        { disks: [{ name: 'disk', size: 2 * SIZE }] },
        'unready',
        /2097152 bytes on the primary and 1048576/,
      ],
      [
        'with another disk',
        { disks: [{ name: 'other', size: SIZE }] },
        'unready',
        /"other" exists only on the primary/,
      ],
      ['with the right disks and another history', {}, 'history', /never had anything to do/],
    ]
    for (const [who, difference, code, reason] of cases) {
      const refused = await refusal(pair.port, { ...STRANGER, ...difference })
      t.equal(refused.code, code, `a primary ${who}`)
      t.match(refused.reason, reason)
    }
    await stillProtected(t, pair)
  },
)

void t.test('garbage on the replication port ends that connection and nothing else', async (t) => {
  const pair = await startPair(t, { mode: 'colo', disks: { disk: SIZE } })
  const hello = encodeFrame(frame('hello', { payload: encodeHello(STRANGER) }))
  const flipped = Buffer.from(hello)
  flipped.writeUInt8(flipped.readUInt8(40) ^ 1, 40)
  const garbage = [
    Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'),
    randomBytes(100_000),
    Buffer.alloc(100_000),
    flipped,
    encodeFrame(frame('checkpoint', { position: 99 })),
    encodeFrame(frame('hello', { payload: Buffer.from('{"protocol":') })),
    encodeFrame(frame('hello', { payload: Buffer.from('[]') })),
  ]
  for (const bytes of garbage)
    t.notOk((await say(pair.port, bytes)).some(({ type }) => type === 'hello'))
  await stillProtected(t, pair)
})

void t.test(
  'ten thousand connections opened and dropped leave the servers as they were',
  async (t) => {
    const pair = await startPair(t, { mode: 'colo', disks: { disk: SIZE } })
    // A unix socket whose queue is full answers EAGAIN: then the client comes again, as real ones do.
    const openAndDrop = async (options: net.NetConnectOpts): Promise<void> => {
      for (let connected = false; !connected;) {
        connected = await new Promise((resolve) => {
          const socket = net.connect(options)
          socket.once('error', () => resolve(false))
          socket.once('connect', () => {
            socket.destroy()
            resolve(true)
          })
        })
      }
    }
    for (let batch = 0; batch < 100; batch += 1) {
      const nbd = Array.from({ length: 50 }, () =>
        openAndDrop({ path: pair.primary.server.socket }),
      )
      const link = Array.from({ length: 50 }, () =>
        openAndDrop({ port: pair.port, host: '127.0.0.1' }),
      )
      await Promise.all([...nbd, ...link])
    }
    const client = await NbdClient.connect({
      address: { kind: 'unix', path: pair.primary.server.socket },
      exportName: 'disk',
    })
    await client.write(Buffer.alloc(4096, 7), 0)
    await client.disconnect()
    await stillProtected(t, pair)
    t.equal((await pair.primary.server.stop()).code, 0)
    t.equal((await pair.secondary.server.stop()).code, 0)
    t.ok(
      (await readFile(pair.secondary.images['disk']!))
        .subarray(0, 4096)
        .equals(Buffer.alloc(4096, 7)),
    )
  },
)

void t.test(
  'a peer of another size is refused on both sides, and its image stays as it was',
  async (t) => {
    const [port] = await freePorts(1)
    const directory = await tempDirectory(t)
    const secondary = await startHost(
      t,
      { mode: 'remus', disks: { disk: SIZE } },
      directory,
      'secondary',
      port!,
    )
    const primary = await startHost(
      t,
      { mode: 'remus', disks: { disk: 2 * SIZE } },
      directory,
      'primary',
      port!,
    )
    await protection(primary.qmp, 'unprotected')
    t.match(
      (await groupState(primary.qmp)).reason,
      /2097152 bytes on the primary and 1048576 on the secondary/,
    )
    const client = await NbdClient.connect({
      address: { kind: 'unix', path: primary.server.socket },
      exportName: 'disk',
    })
    await client.write(Buffer.alloc(4096, 1), 0)
    await client.disconnect()
    await t.rejects(
      primary.qmp.execute('replication-checkpoint'),
      /no secondary/,
      'a checkpoint fails rather than pretend',
    )
    t.equal((await secondary.server.stop()).code, 0)
    t.ok((await readFile(secondary.images['disk']!)).every((byte) => byte === 0))
  },
)

void t.test('what cannot be replicated is refused at the start with advice', async (t) => {
  const directory = await tempDirectory(t)
  const image = `${directory}/odd.img`
  await createEmptyImage(image, 1000)
  const serve = (pipeline: string): Promise<{ code: number | null; stderr: string }> =>
    colotap(t, [
      'serve',
      '--export',
      `disk=${pipeline}`,
      '--listen',
      `unix:${directory}/n`,
      '--control',
      `${directory}/c`,
    ])
  const [port] = await freePorts(1)
  const cases: [string, RegExp][] = [
    [`colo:127.0.0.1:1|aio:${image}`, /whole sectors.*truncate -s 1024/],
    [`colo:127.0.0.1:1?role=boss|ram:1M`, /role=boss.*auto or primary or secondary/],
    [`colo:127.0.0.1:1?rolle=primary|ram:1M`, /rolle.*role/],
    [`colo:127.0.0.1:1?memory=1K|ram:1M`, /memory=1K/],
    [`colo:127.0.0.1:1?timeout=100|ram:1M`, /two heartbeats/],
    [`colo:nowhere|ram:1M`, /not an address/],
    [`colo:0.0.0.0:${port}?role=secondary|ram:1M`, /--insecure/],
    [`colo:127.0.0.1:0?role=secondary|ram:1M`, /port 0.*choose a port/],
    [`colo:127.0.0.1:1?role=primary|remus:127.0.0.1:1?role=primary|ram:1M`, /by one layer/],
    [`colo:127.0.0.1:1`, /needs a driver below it.*aio/],
  ]
  for (const [pipeline, expected] of cases) {
    const { code, stderr } = await serve(pipeline)
    t.equal(code, 1, pipeline)
    t.match(stderr.trim().split('\n').at(-1), expected)
  }
  const taken = await serveColotap(t, {
    exports: { disk: `colo:127.0.0.1:${port}?role=secondary|ram:1M` },
  })
  const { stderr } = await serve(`colo:127.0.0.1:${port}?role=secondary|ram:1M`)
  t.match(stderr, /replication port is in use.*127\.0\.0\.1/, 'a replication port that is busy')
  t.equal((await taken.stop()).code, 0)
})
