/** What a group does as a secondary, and once it is promoted, when its disks, its memory or its operator are in the way. */

import t from 'tap'

import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { KiB, MiB } from '../../core/units.ts'
import type { LinkHandlers } from '../../replication/environment.ts'
import type { GroupEvent } from '../../replication/group.ts'
import { frame, type Frame } from '../../replication/machine/frame.ts'
import type { Hello } from '../../replication/machine/handshake.ts'
import { NODE_TIMERS } from '../../replication/node-timers.ts'
import { memoryRegions } from '../../replication/regions/region-store.ts'
import { ReplicaGroup } from '../../replication/replica-group.ts'
import { MemoryDevice } from '../nbd/memory-device.ts'
import { FakeLink } from './fake-link.ts'
import { MemorySegments } from './journal/memory-segments.ts'

const SIZE = 64 * MiB

interface Replica {
  readonly group: ReplicaGroup
  readonly images: readonly MemoryDevice[]
  readonly disks: readonly BlockDevice[]
  readonly events: GroupEvent[]
}

/** A secondary that follows the test. */
interface Connected extends Replica {
  readonly link: FakeLink
  readonly handlers: LinkHandlers
}

interface Options {
  readonly durability?: 'journal' | 'memory'
  readonly memory?: number
  readonly store?: MemorySegments
  readonly names?: readonly string[]
  /** What the images of an earlier process hold. */
  readonly contents?: readonly Buffer[]
}

async function start(options: Options = {}): Promise<Replica> {
  const { durability = 'memory', memory = 64 * MiB, store = new MemorySegments() } = options
  const names = options.names ?? ['a']
  const events: GroupEvent[] = []
  let ids = 0
  const group = new ReplicaGroup(
    {
      ...{ group: 'vm', mode: 'colo', role: 'secondary', peer: null, listens: true },
      ...{ memory, durability, journal: 1 << 30, identical: false, onLinkLoss: 'continue' },
      ...{ heartbeatMs: 100_000, timeoutMs: 1_000_000, intervalMs: 0 },
      ...{ wire: 'colotap', fence: null, partBytes: 64 * MiB, resyncRate: 0, ack: 'sent' },
      ...{ compareBytes: 256 * KiB, comparesFirst: false },
    },
    {
      logger: SILENT,
      newId: () => `s${(ids += 1)}`,
      timers: NODE_TIMERS,
      nowMs: () => performance.now(),
      onEvent: (event) => events.push(event),
      removeRegions: () => Promise.resolve(),
      hasSegments: async () => (await store.list()).length > 0,
      fence: () => Promise.resolve({ fenced: false, detail: '' }),
      openSegments: () => Promise.resolve(store),
      openRegions: (_group, _disk, size) => Promise.resolve(memoryRegions(size, 64 * KiB)),
    },
    undefined,
  )
  const images = names.map((_, index) => {
    const image = new MemoryDevice(SIZE)
    options.contents?.[index]?.copy(image.bytes)
    return image
  })
  const disks = images.map((image, index) => group.attach(names[index]!, image))
  await group.start()
  return { group, images, disks, events }
}

async function connected(options: Options = {}): Promise<Connected> {
  const replica = await start(options)
  const link = new FakeLink()
  const handlers = replica.group.take(link, hello(options.names ?? ['a']))
  handlers.frame(frame('synced'))
  return { ...replica, link, handlers }
}

/** Of a primary at its beginning, which an operator says to be equal to its secondary. */
function hello(names: readonly string[]): Hello {
  return {
    protocol: { min: 1, max: 1 },
    ...{ group: 'vm', mode: 'colo', role: 'primary', replica: 'p' },
    ...{ generation: 'g1', history: [], checkpoint: 0, announced: 0, term: 1 },
    ...{ consistent: true, wrote: true, capacity: 0, durable: false },
    ...{ discard: null, identical: true, features: [], ack: 'sent' },
    disks: names.map((name) => ({ name, size: SIZE })),
  }
}

const data = (disk: number, position: number, value: number): Frame =>
  frame('write', { disk, position, payload: Buffer.alloc(64 * KiB, value) })

async function checkpoint({ handlers, link }: Connected, number: number): Promise<void> {
  const done = link.next('done')
  handlers.frame(frame('checkpoint', { position: number }))
  await done
}

const noSpace = (): Fault => new Fault('NO_SPACE', 'the image is full')

void t.test('a stop that loses committed data fails; with a journal nothing is lost', async (t) => {
  for (const durability of ['memory', 'journal'] as const) {
    const store = new MemorySegments()
    const started = await connected({ durability, store })
    const { images, disks, handlers } = started
    images[0]!.failure = noSpace()
    handlers.frame(data(0, 0, 7))
    await checkpoint(started, 1)
    if (durability === 'memory') {
      await t.rejects(disks[0]!.close(), {
        message: /65536 committed bytes did not reach the image: .*full: a /,
      })
      continue
    }
    await disks[0]!.close()
    const again = await start({ durability, store })
    t.equal(again.group.status().checkpoint, 1)
    const back = Buffer.alloc(64 * KiB)
    await again.disks[0]!.read(back, 0)
    t.equal(back[0], 7, 'the next process has it')
    await again.disks[0]!.close()
    t.equal(again.images[0]!.bytes[0], 7, 'and its image after a stop')
  }
})

void t.test('a disk that fails takes no other disk with it', async (t) => {
  const started = await connected({ names: ['a', 'b'] })
  const { images, disks, handlers } = started
  images[1]!.failure = noSpace()
  images[0]!.mode = 'held'
  handlers.frame(data(0, 0, 1))
  handlers.frame(data(1, 0, 2))
  await checkpoint(started, 1)
  await images[0]!.whenHeld(1)
  const closing = disks[0]!.close()
  images[0]!.mode = 'async'
  images[0]!.release()
  await t.rejects(closing, { message: /did not reach the image.*: b/ })
  t.equal(images[0]!.bytes[0], 1, 'the healthy disk has its checkpoint')
})

void t.test(
  'an error goes when what was wrong works again, and is said again when it comes back',
  async (t) => {
    const started = await connected()
    const { group, images, disks, events, handlers } = started
    const errors = (): number => events.filter(({ event }) => event === 'REPLICATION_ERROR').length
    for (const round of [1, 2]) {
      images[0]!.failure = noSpace()
      handlers.frame(data(0, 0, round))
      await checkpoint(started, round)
      while (group.status().error === null) await new Promise(setImmediate)
      t.equal(errors(), round)
      t.match(group.status().error, /disk "a" cannot take a committed checkpoint yet.*full/)
      images[0]!.failure = undefined
      while (group.status().error !== null) await new Promise(setImmediate)
    }
    await disks[0]!.close()
  },
)

void t.test(
  'the guest of a secondary leaves room for the primary, and waits no longer than its server lives',
  async (t) => {
    const started = await connected({ memory: 8 * MiB })
    const { group, disks, handlers } = started
    const [disk] = disks
    const megabyte = Buffer.alloc(1 * MiB, 9)
    const waiting: Promise<void>[] = []
    for (let at = 0; at < 8; at += 1) {
      const result = disk!.write(megabyte, at * MiB, 0)
      if (result instanceof Promise) waiting.push(result)
    }
    t.ok(waiting.length > 0 && waiting.length < 8, `${waiting.length} of 8 writes wait`)
    for (let at = 0; at < 32; at += 1) handlers.frame(data(0, at * 64 * KiB, 1))
    await checkpoint(started, 1)
    await waiting[0]
    t.pass('a checkpoint makes room for the guest')
    await t.rejects(async () => disk!.write(Buffer.alloc(8 * MiB), 0, 0), { code: 'NO_MEMORY' })
    const late: Promise<void>[] = []
    for (let at = 0; at < 16; at += 1) {
      const result = disk!.write(megabyte, at * MiB, 0)
      if (result instanceof Promise) late.push(result)
    }
    t.ok(late.length > 0)
    group.stop()
    for (const each of [...waiting, ...late]) {
      const outcome = await each.then(
        () => 'done',
        (fault: unknown) => (fault as Fault).code,
      )
      t.ok(outcome === 'done' || outcome === 'SHUTDOWN', outcome)
    }
    await t.rejects(group.promote(true), { code: 'SHUTDOWN' })
    await disk!.close()
  },
)

void t.test(
  'a journal that fails ends protection until it works again, and loses no checkpoint',
  async (t) => {
    const store = new MemorySegments()
    const started = await connected({ durability: 'journal', store })
    const { group, link, handlers } = started
    handlers.frame(data(0, 0, 1))
    await checkpoint(started, 1)
    store.failing = 'sync'
    handlers.frame(data(0, 0, 2))
    const refusal = link.next('refuse')
    handlers.frame(frame('checkpoint', { position: 2 }))
    t.match((await refusal).payload.toString(), /"unready".*no space to sync/)
    t.match(group.status(), { checkpoint: 1, protection: 'unprotected', error: /no space to sync/ })
    const again = { ...hello(['a']), checkpoint: 1, announced: 2 }
    const refused = new FakeLink()
    group.take(refused, again)
    t.match(refused.sent[0], { type: 'refuse' }, 'not before it works')
    store.failing = undefined
    let taken = new FakeLink()
    let takenHandlers = group.take(taken, again)
    while (taken.sent[0]?.type !== 'hello') {
      await new Promise(setImmediate)
      taken = new FakeLink()
      takenHandlers = group.take(taken, again)
    }
    takenHandlers.frame(frame('synced'))
    takenHandlers.frame(data(0, 0, 3))
    await checkpoint({ ...started, link: taken, handlers: takenHandlers }, 3)
    t.match(group.status(), { checkpoint: 3, protection: 'protected', durable: true, error: null })
    await started.disks[0]!.close()
  },
)

void t.test(
  'a flush of the promoted disk is done when no recovery can undo what it made last',
  async (t) => {
    const store = new MemorySegments()
    const started = await connected({ durability: 'journal', store })
    const { group, disks, images, handlers } = started
    images[0]!.mode = 'held'
    handlers.frame(data(0, 0, 1))
    await checkpoint(started, 1)
    await images[0]!.whenHeld(1)
    await group.promote(true)
    images[0]!.mode = 'async'
    const written = disks[0]!.write(Buffer.alloc(4 * KiB, 2), 0, 0)
    images[0]!.release()
    await written
    await disks[0]!.flush()
    // The power fails here: the image has what was flushed, and the journal what it has.
    const again = await start({ durability: 'journal', store, contents: [images[0]!.bytes] })
    const back = Buffer.alloc(4 * KiB)
    await again.disks[0]!.read(back, 0)
    t.equal(again.group.status().role, 'active')
    t.equal(back[0], 2)
    await again.disks[0]!.close()
    await disks[0]!.close()
  },
)

/** A secondary whose link was lost while a checkpoint was being committed; open() lets that end. */
async function lostInCommit(
  waits: (group: ReplicaGroup) => unknown = () => undefined,
): Promise<Connected & { readonly open: () => void }> {
  const store = new MemorySegments()
  const started = await connected({ durability: 'journal', store })
  let open = (): void => undefined
  store.gate = new Promise((resolve) => (open = resolve))
  started.handlers.frame(data(0, 0, 1))
  waits(started.group)
  started.handlers.frame(frame('checkpoint', { position: 1 }))
  started.handlers.closed('cut')
  return { ...started, open }
}

void t.test(
  'what the guest of a secondary writes once the loss of the primary is told survives a promote',
  async (t) => {
    const { group, disks, events, open } = await lostInCommit()
    const heard = (): boolean =>
      events.some(({ event, data }) => event === 'REPLICATION_LINK' && 'up' in data && !data.up)
    const guest = async (): Promise<void> => {
      while (!heard()) await new Promise(setImmediate)
      await disks[0]!.write(Buffer.alloc(4 * KiB, 2), 0, 0)
    }
    const written = guest()
    for (let turn = 0; turn < 10; turn += 1) await new Promise(setImmediate)
    t.equal(group.status().protection, 'unprotected', 'the status does not wait')
    open()
    await written
    t.match(await group.promote(false), { role: 'active', checkpoint: 1 })
    const back = Buffer.alloc(8 * KiB)
    await disks[0]!.read(back, 0)
    t.same([back[0], back[4 * KiB]], [2, 1], 'over the checkpoint that was under way')
    await disks[0]!.close()
  },
)

void t.test('who waits for a checkpoint is told of one that outlives its link', async (t) => {
  let waiting: unknown
  const { disks, open } = await lostInCommit((group) => (waiting = group.checkpoint(60_000)))
  open()
  t.match(await waiting, { checkpoint: 1 })
  await disks[0]!.close()
})

void t.test('nobody waits for a checkpoint longer than its server lives', async (t) => {
  let waiting: unknown
  const { disks, open } = await lostInCommit((group) => (waiting = group.checkpoint(60_000)))
  const refused = t.rejects(waiting as Promise<unknown>, { code: 'LINK_LOST' })
  const closed = disks[0]!.close()
  await refused
  open()
  await closed
})

void t.test('frames that were held come too late when the journal fails', async (t) => {
  const store = new MemorySegments()
  const started = await connected({ durability: 'journal', store, memory: 8 * MiB })
  const { group, images, disks, handlers, link } = started
  // The image takes nothing, so memory fills up: with one committed epoch, one that is being committed, and a part of the next.
  images[0]!.failure = noSpace()
  for (let at = 0; at < 50; at += 1) handlers.frame(data(0, at * 64 * KiB, 1))
  await checkpoint(started, 1)
  store.failing = 'sync'
  for (let at = 50; at < 90; at += 1) handlers.frame(data(0, at * 64 * KiB, 2))
  const refused = link.next('refuse')
  handlers.frame(frame('checkpoint', { position: 2 }))
  for (let at = 0; at < 60; at += 1) handlers.frame(data(0, at * 64 * KiB, 3))
  handlers.frame(frame('checkpoint', { position: 3 }))
  await refused
  store.failing = undefined
  images[0]!.failure = undefined
  let [again, frames] = [new FakeLink(), handlers]
  const returning = { ...hello(['a']), checkpoint: 1, announced: 3 }
  while (again.sent[0]?.type !== 'hello') {
    await new Promise(setImmediate)
    again = new FakeLink()
    frames = group.take(again, returning)
  }
  frames.frame(data(0, 0, 4))
  await checkpoint({ ...started, link: again, handlers: frames }, 4)
  const back = Buffer.alloc(64 * KiB)
  await disks[0]!.read(back, 0)
  t.equal(back[0], 4, 'checkpoint 4 is what was sent for it')
  await disks[0]!.read(back, 50 * 64 * KiB)
  t.equal(back[0], 0, 'and nothing of what was lost')
  t.equal((await group.promote(true)).role, 'active')
  await disks[0]!.close()
})

void t.test(
  'a promoted disk that works is not held up by one that does not, and a stop ends all waits',
  async (t) => {
    const started = await connected({ durability: 'journal', names: ['a', 'b'] })
    const { group, images, disks, handlers } = started
    images[0]!.failure = noSpace()
    handlers.frame(data(0, 0, 1))
    handlers.frame(data(1, 0, 2))
    await checkpoint(started, 1)
    await group.promote(true)
    await disks[1]!.write(Buffer.alloc(4 * KiB, 3), 0, 0)
    await disks[1]!.flush()
    t.pass('the healthy disk is flushed')
    const stuck = Promise.resolve(disks[0]!.flush())
    while (group.status().error === null) await new Promise(setImmediate)
    group.stop()
    await t.rejects(stuck, { code: 'SHUTDOWN' })
    await disks[0]!.close()
    await disks[1]!.close()
  },
)

void t.test(
  'a journal is not forgotten by durability=memory, and has nothing to bring back after a clean stop',
  async (t) => {
    const store = new MemorySegments()
    const started = await connected({ durability: 'journal', store })
    started.handlers.frame(data(0, 0, 1))
    await checkpoint(started, 1)
    await started.disks[0]!.close()
    await t.rejects(start({ durability: 'memory', store }), {
      code: 'NOT_PERMITTED',
      message: /journal/,
    })
    const again = await start({ durability: 'journal', store })
    const back = Buffer.alloc(4 * KiB, 9)
    await again.disks[0]!.read(back, 0)
    t.equal(back[0], 0, 'an image that was changed meanwhile is left as it is')
    t.equal(again.group.status().checkpoint, 1)
    await again.disks[0]!.close()
  },
)
