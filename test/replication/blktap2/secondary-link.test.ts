/** A secondary's group over the blktap2 wire, against a primary that behaves as the old code does. */

import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'
import { setImmediate } from 'node:timers/promises'

import t, { type Test } from 'tap'

import type { BlockDevice } from '../../../core/block-device.ts'
import { Fault } from '../../../core/fault.ts'
import { SILENT } from '../../../core/logger.ts'
import { KiB, MiB } from '../../../core/units.ts'
import { Blktap2Listener } from '../../../replication/blktap2/listener.ts'
import type { GroupEvent } from '../../../replication/group.ts'
import { NODE_TIMERS } from '../../../replication/node-timers.ts'
import { memoryRegions } from '../../../replication/regions/region-store.ts'
import { ReplicaGroup } from '../../../replication/replica-group.ts'
import { MemoryDevice } from '../../nbd/memory-device.ts'
import { freePorts } from '../../support/scope.ts'
import { MemorySegments } from '../journal/memory-segments.ts'
import { cutAt, oldCommit, oldSubmit, oldWrite } from './old-wire.ts'

const SIZE = 1 * MiB

class Secondary {
  readonly image = new MemoryDevice(SIZE)
  readonly group: ReplicaGroup
  readonly disk: BlockDevice
  readonly listener: Blktap2Listener
  #watchers: ((event: GroupEvent) => void)[] = []

  constructor(port: number, store: MemorySegments) {
    this.group = new ReplicaGroup(
      {
        ...{ group: 'vm', mode: 'remus', role: 'secondary', peer: null, listens: true },
        ...{ wire: 'blktap2', identical: false, onLinkLoss: 'continue', intervalMs: 0 },
        ...{ fence: null, partBytes: MiB, resyncRate: 0, ack: 'sent' },
        ...{ compareBytes: MiB / 4, comparesFirst: false },
        ...{ memory: 64 * MiB, durability: 'journal', journal: 1 << 30 },
        ...{ heartbeatMs: 100_000, timeoutMs: 1_000_000 },
      },
      {
        logger: SILENT,
        newId: randomUUID,
        fence: () => Promise.reject(new Error('nobody is to be asked')),
        timers: NODE_TIMERS,
        nowMs: () => performance.now(),
        onEvent: (event) => {
          for (const look of this.#watchers) look(event)
        },
        openRegions: (_, _disk, bytes) => Promise.resolve(memoryRegions(bytes, MiB)),
        removeRegions: () => Promise.resolve(),
        hasSegments: async () => (await store.list()).length > 0,
        openSegments: () => Promise.resolve(store),
      },
      undefined,
    )
    this.disk = this.group.attach('disk', this.image)
    this.listener = new Blktap2Listener('127.0.0.1', port, SILENT)
  }

  /** Resolves when the protection is `wanted`, and gives the reason for it. */
  async until(wanted: string): Promise<string> {
    while (this.group.status().protection !== wanted)
      await new Promise<unknown>((resolve) => this.#watchers.push(resolve))
    return this.group.status().reason ?? ''
  }
}

/** The old primary: it writes what it is told to, and reads four bytes for each commit. */
class OldPrimary {
  readonly socket: net.Socket
  readonly closed: Promise<unknown>
  answers = ''
  #watchers: (() => void)[] = []

  constructor(t: Test, port: number) {
    this.socket = net.connect(port, '127.0.0.1')
    this.socket.on('error', () => undefined)
    this.socket.on('data', (chunk) => {
      this.answers += chunk.toString()
      for (const look of this.#watchers) look()
    })
    this.closed = once(this.socket, 'close')
    t.teardown(() => this.socket.destroy())
  }

  async answered(text: string): Promise<void> {
    while (this.answers !== text) await new Promise<void>((resolve) => this.#watchers.push(resolve))
  }

  async commit(): Promise<void> {
    const wanted = `${this.answers}done`
    this.socket.write(oldCommit())
    await this.answered(wanted)
  }
}

interface Started {
  readonly secondary: Secondary
  readonly port: number
  readonly store: MemorySegments
}

async function start(t: Test, store = new MemorySegments()): Promise<Started> {
  const [port] = await freePorts(1)
  const secondary = new Secondary(port!, store)
  await secondary.listener.listen()
  secondary.listener.add('vm', secondary.group)
  await secondary.group.start()
  secondary.listener.start()
  t.teardown(async () => {
    await secondary.listener.close()
    await secondary.disk.close().catch(() => undefined)
  })
  return { secondary, port: port!, store }
}

async function content(disk: BlockDevice): Promise<Buffer> {
  const bytes = Buffer.alloc(SIZE)
  await disk.read(bytes, 0)
  return bytes
}

void t.test('what an old primary writes and commits is what a promote serves', async (t) => {
  const { secondary, port } = await start(t)
  const primary = new OldPrimary(t, port)
  const expected = Buffer.alloc(SIZE)
  const stream: Buffer[] = []
  for (const [sector, count, byte] of [
    [0, 88, 1],
    [8, 8, 2],
    [2047, 1, 3],
    [16, 8, 0],
    [100, 512, 4],
  ] as const) {
    const data = Buffer.alloc(count * 512, byte)
    data.copy(expected, sector * 512)
    stream.push(oldWrite(sector, data), oldSubmit())
  }
  for (const piece of cutAt(Buffer.concat(stream), [1, 500, 17, 4096])) primary.socket.write(piece)
  await primary.commit()
  primary.socket.write(oldWrite(0, Buffer.alloc(4096, 9)))
  await primary.commit()
  expected.fill(9, 0, 4096)
  t.match(secondary.group.status(), { protection: 'protected', checkpoint: 2, durable: true })
  primary.socket.write(oldWrite(50, Buffer.alloc(512, 7)))
  primary.socket.end()
  await secondary.until('unprotected')
  await secondary.group.promote(false)
  t.ok((await content(secondary.disk)).equals(expected), 'and nothing that was not committed')
})

void t.test('zeroes become holes, in memory too', async (t) => {
  const { secondary, port } = await start(t)
  const primary = new OldPrimary(t, port)
  primary.socket.write(oldWrite(0, Buffer.alloc(4096)))
  await primary.commit()
  await secondary.listener.close()
  await secondary.disk.close()
  const changes = secondary.image.calls.filter((call) => /^(write|zero)/.test(call))
  t.match(changes, [/^zero 0\+4096/])
})

void t.test('a commit that does not reach the journal is not answered', async (t) => {
  const { secondary, port, store } = await start(t)
  const primary = new OldPrimary(t, port)
  await primary.commit()
  store.failing = 'sync'
  primary.socket.write(Buffer.concat([oldWrite(0, Buffer.alloc(512, 1)), oldCommit()]))
  await primary.closed
  t.equal(primary.answers, 'done')
  t.match(secondary.group.status(), { protection: 'unprotected', checkpoint: 1 })
})

void t.test('strangers have no effect, however many', async (t) => {
  const { secondary, port } = await start(t)
  const silent = Array.from({ length: 40 }, () => new OldPrimary(t, port))
  await Promise.all(silent.slice(0, 8).map(({ closed }) => closed))
  for (const noise of [
    'GET / HTTP/1.1\r\n\r\n',
    'rreq',
    '\0\0\0\0',
    'wreq\xff\xff\xff\xff'.repeat(4),
  ]) {
    const stranger = new OldPrimary(t, port)
    stranger.socket.write(Buffer.from(noise, 'latin1'))
    await stranger.closed
    t.equal(stranger.answers, '')
  }
  t.match(secondary.group.status(), { protection: 'connecting', heals: true, peer: null })
  await silent.at(-1)!.commit()
  t.equal(secondary.group.status().protection, 'protected', 'one of the silent ones may speak late')
})

void t.test('only one primary, once: neither beside the first one nor after it', async (t) => {
  const { secondary, port } = await start(t)
  const first = new OldPrimary(t, port)
  first.socket.write(oldWrite(0, Buffer.alloc(512, 1)))
  await first.commit()
  const second = new OldPrimary(t, port)
  second.socket.write(Buffer.concat([oldWrite(0, Buffer.alloc(512, 2)), oldCommit()]))
  await second.closed
  await first.commit()
  first.socket.destroy()
  const reason = await secondary.until('unprotected')
  t.match(reason, /no primary can come back: make the images equal, and start both sides anew/)
  const third = new OldPrimary(t, port)
  third.socket.write(Buffer.concat([oldWrite(0, Buffer.alloc(512, 3)), oldCommit()]))
  await third.closed
  t.same([second.answers, third.answers], ['', ''])
  t.match(secondary.group.status(), {
    protection: 'unprotected',
    heals: false,
    checkpoint: 2,
    reason,
  })
  await secondary.group.promote(false)
  t.equal((await content(secondary.disk))[0], 1)
})

void t.test('no choice of an operator lets a primary in that would not copy', async (t) => {
  const { secondary, port } = await start(t)
  const first = new OldPrimary(t, port)
  first.socket.write(oldWrite(0, Buffer.alloc(512, 1)))
  await first.commit()
  first.socket.destroy()
  await secondary.until('unprotected')
  for (const discard of ['local', 'remote'] as const) {
    await secondary.group.resolveSplit(discard)
    const late = new OldPrimary(t, port)
    late.socket.write(Buffer.concat([oldWrite(0, Buffer.alloc(512, 3)), oldCommit()]))
    await late.closed
    t.equal(late.answers, '', `--discard ${discard}`)
  }
  await secondary.group.promote(false)
  const late = new OldPrimary(t, port)
  late.socket.write(Buffer.concat([oldWrite(0, Buffer.alloc(512, 3)), oldCommit()]))
  await late.closed
  t.match(secondary.group.status(), { role: 'active', checkpoint: 1 })
  await secondary.disk.write(Buffer.alloc(512, 4), 512, 0)
  t.same([(await content(secondary.disk))[0], (await content(secondary.disk))[512]], [1, 4])
})

void t.test('what was met before a restart is remembered with the journal', async (t) => {
  const { secondary, port, store } = await start(t)
  const primary = new OldPrimary(t, port)
  await primary.commit()
  await secondary.listener.close()
  await secondary.disk.close()
  const again = await start(t, store)
  t.match(again.secondary.group.status(), { checkpoint: 1, heals: false })
  const late = new OldPrimary(t, again.port)
  late.socket.write(oldCommit())
  await late.closed
  t.equal(late.answers, '')
})

void t.test('a write beyond the end ends the connection, and its epoch', async (t) => {
  const { secondary, port } = await start(t)
  const primary = new OldPrimary(t, port)
  primary.socket.write(oldWrite(0, Buffer.alloc(512, 1)))
  primary.socket.write(Buffer.concat([oldWrite(SIZE / 512, Buffer.alloc(512, 1)), oldCommit()]))
  await primary.closed
  t.match(await secondary.until('unprotected'), /beyond the end of disk/)
  t.equal(secondary.group.status().checkpoint, 0)
  t.equal(primary.answers, '')
})

void t.test('a primary that comes before the groups are started waits, and is heard', async (t) => {
  const [port] = await freePorts(1)
  const secondary = new Secondary(port!, new MemorySegments())
  await secondary.listener.listen()
  secondary.listener.add('vm', secondary.group)
  const primary = new OldPrimary(t, port!)
  await once(primary.socket, 'connect')
  primary.socket.write(Buffer.concat([oldWrite(0, Buffer.alloc(4 * KiB, 1)), oldCommit()]))
  // Time enough for it to be read, if anybody did.
  for (let turn = 0; turn < 50; turn += 1) await setImmediate()
  t.equal(secondary.group.status().protection, 'connecting')
  await secondary.group.start()
  secondary.listener.start()
  await primary.answered('done')
  await secondary.listener.close()
  await secondary.disk.close()
  t.equal(secondary.image.bytes[0], 1)
})

void t.test('an image that is full for a while loses no commit', async (t) => {
  const { secondary, port } = await start(t)
  const primary = new OldPrimary(t, port)
  secondary.image.failure = new Fault('NO_SPACE', 'the image is full')
  for (let epoch = 1; epoch <= 3; epoch += 1) {
    primary.socket.write(oldWrite(epoch, Buffer.alloc(512, epoch)))
    await primary.commit()
  }
  secondary.image.failure = undefined
  await secondary.listener.close()
  await secondary.disk.close()
  t.same(
    [512, 1024, 1536].map((at) => secondary.image.bytes[at]),
    [1, 2, 3],
  )
})
