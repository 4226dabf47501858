import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'
import { setImmediate as turn } from 'node:timers/promises'

import t, { type Test } from 'tap'

import { FaultyLink } from '../../../cli/soak/faulty-link.ts'
import { seededRandom } from '../../../core/seeded-random.ts'

interface Rig {
  readonly link: FaultyLink
  readonly primary: net.Socket
  readonly secondary: net.Socket
  /** Connects once more; the secondary's end is not kept. */
  readonly dial: () => net.Socket
}

async function rig(t: Test): Promise<Rig> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const link = await FaultyLink.listen((server.address() as net.AddressInfo).port, seededRandom(1))
  const dial = (): net.Socket => {
    const socket = net.connect({ host: '127.0.0.1', port: link.port })
    socket.on('error', () => undefined)
    t.teardown(() => socket.destroy())
    return socket
  }
  const primary = dial()
  const [secondary] = (await once(server, 'connection')) as [net.Socket]
  secondary.on('error', () => undefined)
  t.teardown(async () => {
    secondary.destroy()
    await link.close()
    server.close()
  })
  return { link, primary, secondary, dial }
}

/** Resolves when `socket` is closed, by a reset as well. */
function gone(socket: net.Socket): Promise<void> {
  return new Promise((resolve) => socket.once('close', () => resolve()))
}

/** Resolves when `socket` has received `wanted` bytes. One listener throughout: what comes between two would be lost. */
function received(socket: net.Socket, wanted: number): Promise<Buffer> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = []
    let length = 0
    const take = (chunk: Buffer): void => {
      chunks.push(chunk)
      length += chunk.length
      if (length < wanted) return
      socket.off('data', take)
      resolve(Buffer.concat(chunks))
    }
    socket.on('data', take)
  })
}

void t.test('in fair weather everything passes both ways, and the end of a side too', async (t) => {
  const { primary, secondary } = await rig(t)
  const end = gone(primary)
  const [there, back] = [randomBytes(3_000_000), randomBytes(1_000_000)]
  const arrived = Promise.all([received(secondary, there.length), received(primary, back.length)])
  primary.end(there)
  secondary.write(back)
  const [atSecondary, atPrimary] = await arrived
  t.ok(atSecondary.equals(there))
  t.ok(atPrimary.equals(back))
  await end
})

for (const weather of [{ kind: 'dribble' }, { kind: 'late', ms: 3 }] as const)
  void t.test(`what is sent into a ${weather.kind} arrives whole and in order`, async (t) => {
    const { link, primary, secondary } = await rig(t)
    link.setWeather('to-secondary', weather)
    const there = randomBytes(100_000)
    primary.write(there)
    t.ok((await received(secondary, there.length)).equals(there))
  })

void t.test('silence holds one direction back and loses nothing', async (t) => {
  const { link, primary, secondary } = await rig(t)
  link.setWeather('to-secondary', { kind: 'silent' })
  let arrivedEarly = 0
  secondary.on('data', (chunk: Buffer) => (arrivedEarly += chunk.length))
  primary.write('there')
  const back = received(primary, 4)
  secondary.write('back')
  t.equal((await back).toString(), 'back', 'the other direction is not concerned')
  t.equal(arrivedEarly, 0)
  secondary.removeAllListeners('data')
  const there = received(secondary, 5)
  link.heal()
  t.equal((await there).toString(), 'there')
})

void t.test('a side that never reads is not read for either: the relay holds little', async (t) => {
  const { link, primary } = await rig(t)
  link.setWeather('to-secondary', { kind: 'silent' })
  const piece = Buffer.alloc(1_000_000)
  let written = 0
  while (primary.write(piece) || primary.writableLength < 4_000_000) {
    written += piece.length
    if (written > 200_000_000) break
    await turn()
  }
  t.ok(written < 200_000_000, 'the writer was slowed down')
})

void t.test(
  'a cut comes after as many bytes as were ordered, and lasts until healed',
  async (t) => {
    const { link, primary, secondary, dial } = await rig(t)
    let arrived = 0
    secondary.on('data', (chunk: Buffer) => (arrived += chunk.length))
    link.cut(1000)
    const closed = [gone(primary), gone(secondary)]
    primary.write(Buffer.alloc(5000))
    await Promise.all(closed)
    t.ok(arrived <= 1000, `${arrived} bytes passed`)
    const refused = dial()
    await gone(refused)
    t.equal(refused.bytesRead, 0)
    link.heal()
    const accepted = dial()
    await once(accepted, 'connect')
    accepted.write('x')
    t.equal(accepted.destroyed, false)
  },
)

void t.test('one bit is flipped, once', async (t) => {
  const { link, primary, secondary } = await rig(t)
  link.flip('to-secondary')
  const there = Buffer.alloc(10_000)
  primary.write(there)
  const first = await received(secondary, there.length)
  const ones = [...first].reduce(
    (sum, byte) => sum + byte.toString(2).replaceAll('0', '').length,
    0,
  )
  t.equal(ones, 1)
  primary.write(there)
  t.ok((await received(secondary, there.length)).equals(there))
})
