import assert from 'node:assert/strict'

import t, { type Test } from 'tap'

import { FUA } from '../../../core/block-device.ts'
import { Fault } from '../../../core/fault.ts'
import { SILENT } from '../../../core/logger.ts'
import { Guard } from '../../../drivers/guard.ts'
import { NbdDevice, type NbdDeviceOptions } from '../../../drivers/nbd/nbd-device.ts'
import { Session } from '../../../drivers/nbd/session.ts'
import { RamDevice } from '../../../drivers/ram.ts'
import { NODE_TIMERS } from '../../../replication/node-timers.ts'
import { MemoryDevice } from '../../nbd/memory-device.ts'
import { until } from '../../nbd/harness.ts'
import { BlockHistory } from '../../../cli/soak/block-history.ts'
import { ManualClock } from '../../support/manual-clock.ts'
import { below, seededRandom } from '../../../core/seeded-random.ts'
import { checkAgainstModel } from '../device-model.ts'
import { RecordingDevice } from '../recording-device.ts'
import { MortalServer } from './mortal-server.ts'
import { VolatileDisk } from './volatile-disk.ts'

const KiB = 1024
const SIZE = 64 * KiB
const security = (): Promise<undefined> => Promise.resolve(undefined)

async function attach(
  t: Test,
  server: MortalServer,
  options: Partial<NbdDeviceOptions> & { connections?: number } = {},
): Promise<NbdDevice> {
  const { connections = 2, ...rest } = options
  const target = { address: server.address, exportName: 'disk' }
  const disk = await NbdDevice.open({
    where: 'server',
    readOnly: false,
    logger: SILENT,
    deadlineMs: 60_000,
    replayBytes: 1024 * KiB,
    timers: NODE_TIMERS,
    nowMs: () => performance.now(),
    open: (signal) => Session.open({ target, connections, security, timeoutMs: 5000, signal }),
    ...rest,
  })
  t.teardown(() => disk.close().catch(() => undefined))
  return disk
}

async function read(disk: NbdDevice, at: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee)
  await disk.read(into, at)
  return into
}

void t.test('a disk of another server does what an array of bytes does', async (t) => {
  const server = await MortalServer.start(t, new Guard(new RamDevice(SIZE), false))
  const disk = new Guard(await attach(t, server), false)
  await checkAgainstModel(disk, { size: SIZE, unit: 1, runs: 20 })
  await disk.close()
  await until(() => server.connections === 0)
})

void t.test('several connections are used where the server allows them', async (t) => {
  const server = await MortalServer.start(t, new RecordingDevice())
  const disk = await attach(t, server, { connections: 3 })
  t.equal(server.accepted, 3)
  await disk.close()
})

void t.test('requests under way and later ones survive a lost connection', async (t) => {
  const device = new MemoryDevice(SIZE)
  const server = await MortalServer.start(t, device)
  const disk = await attach(t, server)
  device.mode = 'held'
  const requests = [
    disk.write(Buffer.from('one'), 0, 0),
    disk.read(Buffer.alloc(3), 8192),
    disk.zero(4096, 512, 0),
    disk.trim(16_384, 512, 0),
    disk.flush(),
  ]
  await device.whenHeld(requests.length)
  await server.down()
  requests.push(disk.write(Buffer.from('two'), 100, 0))
  device.mode = 'inline'
  await server.up()
  await Promise.all(requests)
  t.equal((await read(disk, 0, 3)).toString(), 'one')
  t.equal((await read(disk, 100, 3)).toString(), 'two')
  device.release()
})

void t.test(
  'what was acknowledged and not flushed is put back before anything is read',
  async (t) => {
    const first = new VolatileDisk(Buffer.alloc(SIZE))
    const server = await MortalServer.start(t, first)
    const disk = await attach(t, server)
    await disk.write(Buffer.from('flushed'), 0, 0)
    await disk.flush()
    t.equal(disk.bytesKept, 0, 'a flush covers what was before it')
    await disk.write(Buffer.from('lost?'), 100, 0)
    await disk.write(Buffer.from('LOST?'), 102, 0)
    await disk.write(Buffer.alloc(600, 1), 1000, 0)
    await disk.zero(1000, 500, 0)
    await disk.trim(1500, 50, 0)
    await server.down()
    const second = first.successor()
    t.equal(second.bytes.toString('latin1', 100, 105), '\0\0\0\0\0', 'the server has lost it')
    server.device = second
    await server.up()
    t.equal((await read(disk, 100, 7)).toString(), 'loLOST?')
    t.ok(
      (await read(disk, 1000, 600)).equals(Buffer.concat([Buffer.alloc(550), Buffer.alloc(50, 1)])),
    )
    await disk.flush()
    t.equal(second.durable.toString('latin1', 100, 107), 'loLOST?', 'the flush tells the truth')
  },
)

void t.test(
  'a flush that the crash interrupted covers what was acknowledged before it',
  async (t) => {
    const first = new VolatileDisk(Buffer.alloc(SIZE))
    const server = await MortalServer.start(t, first)
    const disk = await attach(t, server)
    await disk.write(Buffer.from('data'), 0, 0)
    first.gate = new Promise(() => undefined)
    const flushing = disk.flush()
    await until(() => first.calls.includes('flush'))
    await server.down()
    const second = first.successor()
    server.device = second
    await server.up()
    await flushing
    t.equal(second.durable.toString('latin1', 0, 4), 'data')
  },
)

void t.test(
  'overlapping changes take turns, so that none is repeated over a later one',
  async (t) => {
    const device = new MemoryDevice(SIZE)
    const server = await MortalServer.start(t, device)
    const disk = await attach(t, server, { connections: 4 })
    device.mode = 'held'
    const first = disk.write(Buffer.alloc(1000, 1), 0, 0)
    const second = disk.write(Buffer.alloc(1000, 2), 500, 0)
    const apart = disk.write(Buffer.alloc(10, 3), 5000, 0)
    await device.whenHeld(2)
    t.strictSame(
      device.calls.map((call) => call.split(' flags')[0]),
      ['write 0+1000', 'write 5000+10'],
      'the second waits, the one beside does not',
    )
    device.mode = 'inline'
    server.cut()
    await Promise.all([first, second, apart])
    device.release()
    t.equal(device.bytes[700], 2)
  },
)

void t.test(
  'without a server a request fails at its deadline, and the disk lives on',
  async (t) => {
    const device = new MemoryDevice(SIZE)
    const server = await MortalServer.start(t, device)
    const disk = await attach(t, server, { deadlineMs: 100 })
    await server.down()
    await t.rejects(disk.read(Buffer.alloc(4), 0), { code: 'TIMEOUT', message: /100 ms/ })
    await t.rejects(disk.write(Buffer.alloc(4), 0, 0), { code: 'TIMEOUT' })
    await t.rejects(disk.flush(), { code: 'TIMEOUT' })
    await server.up()
    await until(() => disk.connected)
    await disk.write(Buffer.from('back'), 0, 0)
    t.equal((await read(disk, 0, 4)).toString(), 'back')
  },
)

void t.test('a server that is there and does not answer is given up at the deadline', async (t) => {
  const device = new MemoryDevice(SIZE)
  const server = await MortalServer.start(t, device)
  const disk = await attach(t, server, { deadlineMs: 1500, connections: 1 })
  device.mode = 'held'
  const bytes = Buffer.from('mine')
  const into = Buffer.alloc(4, 0xee)
  await Promise.all([
    t.rejects(disk.write(bytes, 0, 0), { code: 'TIMEOUT' }),
    t.rejects(disk.read(into, 100), { code: 'TIMEOUT' }),
  ])
  device.mode = 'inline'
  device.release()
  await disk.write(Buffer.from('next'), 0, 0)
  t.equal((await read(disk, 0, 4)).toString(), 'next')
  t.ok(
    into.equals(Buffer.alloc(4, 0xee)),
    'nobody writes to the buffer of a request that has failed',
  )
  t.ok(server.accepted >= 2, 'the connection that owed the answers was given up')
})

void t.test(
  'closing waits neither for a lost server nor for one that does not answer',
  async (t) => {
    const device = new MemoryDevice(SIZE)
    const server = await MortalServer.start(t, device)
    const disk = new Guard(await attach(t, server), false)
    await server.down()
    const reading = t.rejects(Promise.resolve(disk.read(Buffer.alloc(4), 0)), { code: 'SHUTDOWN' })
    await disk.close()
    await reading
  },
)

void t.test('a close that cannot flush what was acknowledged fails', async (t) => {
  const server = await MortalServer.start(t, new MemoryDevice(SIZE))
  const disk = await attach(t, server)
  await disk.write(Buffer.from('data'), 0, 0)
  await server.down()
  await t.rejects(disk.close(), { name: 'Fault', code: 'SHUTDOWN' })
})

void t.test('a close flushes what was acknowledged', async (t) => {
  const device = new VolatileDisk(Buffer.alloc(SIZE))
  const server = await MortalServer.start(t, device)
  const disk = await attach(t, server)
  await disk.write(Buffer.from('data'), 0, 0)
  await disk.close()
  t.equal(device.durable.toString('latin1', 0, 4), 'data')
})

void t.test('what is kept has a limit: a change without room waits for a flush', async (t) => {
  const device = new MemoryDevice(SIZE)
  const server = await MortalServer.start(t, device)
  const disk = await attach(t, server, { replayBytes: 32 * KiB })
  let most = 0
  await Promise.all(
    Array.from({ length: 64 }, async (_, index) => {
      await disk.write(Buffer.alloc(8 * KiB, index), (index % 8) * 8 * KiB, 0)
      most = Math.max(most, disk.bytesKept)
    }),
  )
  t.ok(most <= 32 * KiB, `${most} bytes were kept`)
  t.ok(device.calls.some((call) => call.startsWith('flush')))
})

void t.test(
  'a flush of our own that fails refuses who waits for it, and fails the next flush',
  async (t) => {
    const device = new MemoryDevice(SIZE)
    const server = await MortalServer.start(t, device)
    const disk = await attach(t, server, { replayBytes: 16 * KiB })
    const flush = device.flush.bind(device)
    device.flush = () => Promise.reject(new Fault('NO_SPACE', 'thin pool full'))
    await disk.write(Buffer.alloc(8 * KiB), 0, 0)
    await t.rejects(disk.write(Buffer.alloc(12 * KiB), 16 * KiB, 0), { code: 'NO_SPACE' })
    device.flush = flush
    await t.rejects(disk.flush(), { code: 'NO_SPACE' })
    await disk.flush()
    t.equal(disk.bytesKept, 0)
  },
)

void t.test('a server that refuses what must be put back ends the use of the disk', async (t) => {
  const device = new MemoryDevice(SIZE)
  const server = await MortalServer.start(t, device)
  const disk = await attach(t, server)
  await disk.write(Buffer.from('data'), 0, 0)
  await server.down()
  const reading = t.rejects(disk.read(Buffer.alloc(4), 0), { code: 'IO', message: /put back/ })
  device.failure = new Fault('NO_SPACE', 'full')
  await server.up()
  await reading
  device.failure = undefined
  await t.rejects(disk.read(Buffer.alloc(4), 0), { message: /put back/ }, 'old data is no answer')
  await t.rejects(disk.flush(), { message: /put back/ })
})

void t.test('a server without flush cannot be replaced once something was changed', async (t) => {
  const device = new MemoryDevice(SIZE)
  device.can = { ...device.can, flush: false }
  const server = await MortalServer.start(t, device)
  const unchanged = await attach(t, server)
  const durable = await attach(t, server)
  const changed = await attach(t, server)
  await durable.write(Buffer.alloc(4), 0, FUA)
  await changed.write(Buffer.alloc(4), 0, 0)
  server.cut()
  await unchanged.read(Buffer.alloc(4), 0)
  await durable.read(Buffer.alloc(4), 0)
  await t.rejects(changed.read(Buffer.alloc(4), 0), { code: 'IO', message: /no flush/ })
})

void t.test(
  'another disk under the same name is not taken for the one that was lost',
  async (t) => {
    const server = await MortalServer.start(t, new MemoryDevice(SIZE))
    const disk = await attach(t, server, { deadlineMs: 150 })
    await server.down()
    const before = server.accepted
    server.device = new MemoryDevice(2 * SIZE)
    await server.up()
    await t.rejects(disk.read(Buffer.alloc(4), 0), { code: 'TIMEOUT' })
    t.ok(server.accepted > before, 'it was looked at')
    server.device = new MemoryDevice(SIZE)
    await until(() => disk.connected)
    await disk.read(Buffer.alloc(4), 0)
  },
)

void t.test('errors of the server are errors of the disk', async (t) => {
  const device = new MemoryDevice(SIZE)
  const server = await MortalServer.start(t, device)
  const disk = await attach(t, server)
  for (const code of ['IO', 'NO_SPACE', 'NO_MEMORY', 'NOT_PERMITTED', 'NOT_SUPPORTED'] as const) {
    device.failure = new Fault(code, 'as told')
    await t.rejects(disk.read(Buffer.alloc(4), 0), { code })
    await t.rejects(disk.write(Buffer.alloc(4), 0, 0), { code })
  }
  t.equal(disk.bytesKept, 0, 'what failed is not kept')
})

void t.test('a server that is not there, or has no such export, is told at once', async (t) => {
  const server = await MortalServer.start(t, new MemoryDevice(SIZE))
  const target = { address: server.address, exportName: 'other' }
  const open = (signal: AbortSignal): Promise<Session> =>
    Session.open({ target, connections: 1, security, timeoutMs: 5000, signal })
  await t.rejects(attach(t, server, { open }), { code: 'NOT_FOUND' })
  await server.down()
  await t.rejects(attach(t, server), { code: 'LINK_LOST' })
})

void t.test('a flush does not cover what was acknowledged after it was issued', async (t) => {
  const first = new VolatileDisk(Buffer.alloc(SIZE))
  const server = await MortalServer.start(t, first)
  const disk = await attach(t, server)
  await disk.write(Buffer.from('before'), 0, 0)
  let answer = (): void => undefined
  const answered = new Promise<void>((resolve) => (answer = resolve))
  let performed = false
  first.flush = () => {
    first.bytes.copy(first.durable)
    performed = true
    return answered
  }
  const flushing = disk.flush()
  await until(() => performed)
  await disk.write(Buffer.from('after'), 100, 0)
  answer()
  await flushing
  await server.down()
  server.device = first.successor()
  await server.up()
  t.equal((await read(disk, 0, 6)).toString(), 'before')
  t.equal((await read(disk, 100, 5)).toString(), 'after')
})

void t.test('closing gives a server that does not answer a few seconds, and no more', async (t) => {
  const device = new MemoryDevice(SIZE)
  const server = await MortalServer.start(t, device)
  const clock = new ManualClock()
  const disk = new Guard(await attach(t, server, { timers: clock, nowMs: clock.nowMs }), false)
  device.mode = 'held'
  const writing = Promise.resolve(disk.write(Buffer.alloc(4), 0, 0))
  const refused = t.rejects(writing, { code: 'TIMEOUT', message: /before the disk was closed/ })
  await device.whenHeld(1)
  let closed = false
  const closing = disk.close().then(() => (closed = true))
  await clock.advance(4999)
  t.notOk(closed)
  await clock.advance(1)
  await refused
  await closing
  device.release()
})

/**
 * A guest with several requests at a time, on a server that dies again and again and loses what was not flushed. Each
 * block must read as its last acknowledged write or one under way, and what a flush has covered must be durable.
 */
void t.test(
  'whenever the server dies, nothing acknowledged is unseen and nothing flushed is lost',
  async (t) => {
    const BLOCK = 4096
    const BLOCKS = 32
    for (const seed of [1, 2, 3]) {
      const random = seededRandom(seed)
      let device = new VolatileDisk(Buffer.alloc(BLOCKS * BLOCK))
      const server = await MortalServer.start(t, device)
      const disk = await attach(t, server, { replayBytes: 64 * KiB, connections: 3 })
      const history = new BlockHistory(BLOCKS, BLOCK)
      let crashes = 0
      let ended = false
      const lane = async (): Promise<void> => {
        while (!ended) {
          const block = below(random, BLOCKS)
          const kind = random()
          if (kind < 0.1) {
            const acknowledged = history.acknowledged()
            await disk.flush()
            const bounds = { acknowledged, issued: history.issued() }
            assert.equal(history.violation(device.durable, bounds), undefined, `seed ${seed}`)
          } else if (kind < 0.4 && history.idle(block)) {
            const acknowledged = history.acknowledged()[block] ?? 0
            const found = await read(disk, block * BLOCK, BLOCK)
            const whole = Buffer.alloc(BLOCKS * BLOCK)
            found.copy(whole, block * BLOCK)
            const bounds = {
              acknowledged: new Uint32Array(BLOCKS),
              issued: new Uint32Array(BLOCKS),
            }
            bounds.acknowledged[block] = acknowledged
            bounds.issued[block] = history.issued()[block] ?? 0
            assert.equal(history.violation(whole, bounds), undefined, `seed ${seed}`)
          } else if (history.idle(block)) {
            const content = history.issue(block, 1, random() < 0.2)
            if (content === undefined) await disk.zero(block * BLOCK, BLOCK, 0)
            else await disk.write(content, block * BLOCK, random() < 0.1 ? FUA : 0)
            history.acknowledge(block, 1)
          } else await new Promise(setImmediate)
        }
      }
      const lanes = Promise.all(Array.from({ length: 6 }, lane))
      while (crashes < 15) {
        const calls = device.calls.length + below(random, 60)
        await Promise.race([until(() => device.calls.length >= calls), lanes])
        if (random() < 0.7) {
          device = device.successor()
          server.device = device
        }
        if (random() < 0.5) server.cut()
        else {
          await server.down()
          await server.up()
        }
        crashes += 1
      }
      ended = true
      await lanes
      await disk.flush()
      const bounds = { acknowledged: history.acknowledged(), issued: history.issued() }
      t.equal(history.violation(device.durable, bounds), undefined, `seed ${seed}`)
      t.ok(bounds.issued.reduce((sum, count) => sum + count, 0) > 50, 'it wrote')
      await disk.close()
    }
  },
)
