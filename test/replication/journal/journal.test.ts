import { setImmediate as turn } from 'node:timers/promises'

import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { SILENT } from '../../../core/logger.ts'
import { KiB } from '../../../core/units.ts'
import { Journal, MOST_BACKLOG } from '../../../replication/journal/journal.ts'
import { replay, scan, type Recovered } from '../../../replication/journal/recovery.ts'
import { encodeFrame, frame } from '../../../replication/machine/frame.ts'
import { FRESH, type ReplicaState } from '../../../replication/machine/replica-state.ts'
import type { SegmentFile } from '../../../replication/journal/segments.ts'
import { MemorySegments } from './memory-segments.ts'

const IDENTITY = { group: 'vm', disks: [{ name: 'a', size: 1 << 20 }] }
const STATE: ReplicaState = { ...FRESH, generation: 'g1' }

/** What a secondary is at a checkpoint. */
const at = (checkpoint: number): ReplicaState => ({ ...STATE, checkpoint })

interface Opened {
  readonly journal: Journal
  readonly store: MemorySegments
  readonly failures: Fault[]
  readonly recovered: Recovered | undefined
}

/** @param limit bytes; a segment is a quarter of it */
async function open(store = new MemorySegments(), limit = 1 << 30): Promise<Opened> {
  const recovered = await scan(store)
  const failures: Fault[] = []
  const journal = new Journal({
    ...{ store, identity: IDENTITY, replica: 'r1', recovered, limit, logger: SILENT },
    state: recovered?.state ?? STATE,
    onFailure: (fault) => failures.push(fault),
  })
  await journal.restart()
  return { journal, store, failures, recovered }
}

/** A write of one byte value, `length` bytes long. */
const write = (value: number, length = 512) =>
  frame('write', { position: value * 512, payload: Buffer.alloc(length, value) })

/** The values written in each epoch that a journal brings back, by checkpoint. */
async function contentOf(store: MemorySegments): Promise<Record<number, number[]>> {
  const recovered = await scan(store)
  const epochs: Record<number, number[]> = {}
  let values: number[] = []
  await replay(
    store,
    recovered?.epochs ?? [],
    ({ type, position }) => {
      if (type === 'write') values.push(position / 512)
    },
    (checkpoint) => {
      epochs[checkpoint] = values
      values = []
    },
  )
  return epochs
}

void t.test(
  'what was committed comes back, what was discarded or not committed does not',
  async (t) => {
    const { journal, store } = await open()
    t.equal(journal.replica, 'r1')
    journal.append(write(1))
    journal.append(write(2))
    await journal.commit(1, at(1))
    journal.append(write(3))
    journal.discard()
    journal.append(write(4))
    await journal.persist({ ...STATE, term: 2 })
    journal.append(write(5))
    await journal.commit(4, { ...at(4), term: 2 })
    journal.append(write(6))
    await journal.persist({ ...STATE, role: 'active', term: 3 })
    await journal.close()
    t.same(await contentOf(store), { 1: [1, 2], 4: [4, 5] })
    const { recovered } = await open(store)
    t.match(recovered, { committed: 4, flushed: [0], state: { role: 'active', term: 3 } })
    t.same(await contentOf(store), { 1: [1, 2], 4: [4, 5] }, 'also after it was begun again')
  },
)

void t.test('several commits under way at a time end in order', async (t) => {
  const { journal, store } = await open()
  const order: number[] = []
  const commits = [1, 2, 3].map((checkpoint) => {
    journal.append(write(checkpoint))
    return journal.commit(checkpoint, at(checkpoint)).then(() => order.push(checkpoint))
  })
  await Promise.all(commits)
  t.same(order, [1, 2, 3])
  t.same(await contentOf(store), { 1: [1], 2: [2], 3: [3] })
  await journal.sync()
  t.equal(journal.backlog, 0)
})

void t.test('what is written and not durable is backlog: a commit would wait for it', async (t) => {
  const { journal, store } = await open()
  await journal.sync()
  let flushed = (): void => undefined
  store.gate = new Promise((resolve) => (flushed = resolve))
  while (journal.backlog < MOST_BACKLOG) journal.append(write(1, 256 * KiB))
  await turn()
  t.ok((store.files.get(1)?.length ?? 0) >= MOST_BACKLOG, 'all is written')
  t.ok(journal.backlog >= MOST_BACKLOG)
  let drained = false
  journal.whenDrained(() => (drained = true))
  await turn()
  t.notOk(drained)
  flushed()
  await journal.sync()
  t.ok(drained)
})

void t.test('a commit resolves when its record is flushed, not before', async (t) => {
  const { journal, store } = await open()
  store.failing = 'sync'
  journal.append(write(1))
  await t.rejects(journal.commit(1, at(1)), { code: 'NO_SPACE' })
  t.match(journal.failure, { code: 'NO_SPACE' })
})

void t.test(
  'after a failure every commit fails until a new segment says what counts',
  async (t) => {
    for (const failing of ['append', 'sync'] as const) {
      const { journal, store, failures } = await open()
      journal.append(write(1))
      await journal.commit(1, at(1))
      store.failing = failing
      journal.append(write(2))
      const second = journal.commit(2, at(2))
      journal.append(write(3))
      const third = journal.commit(3, at(3))
      await t.rejects(second, { code: 'NO_SPACE' }, failing)
      await t.rejects(third, { code: 'NO_SPACE' })
      await t.rejects(journal.commit(4, at(4)), { code: 'NO_SPACE' })
      t.equal(failures.length, 1, 'it is said once')
      await t.rejects(journal.restart(), { code: 'NO_SPACE' })
      store.failing = undefined
      await journal.restart()
      t.same(await contentOf(store), { 1: [1] }, 'a commit that failed does not come back')
      journal.append(write(5))
      await journal.commit(5, at(5))
      t.same(await contentOf(store), { 1: [1], 5: [5] })
    }
  },
)

void t.test('a segment that cannot be made is made later, under the same number', async (t) => {
  const { journal, store } = await open(new MemorySegments(), 4 * KiB)
  store.failing = 'create'
  journal.append(write(1, 2 * KiB))
  journal.append(write(2, 512))
  const first = journal.commit(1, at(1))
  await t.rejects(first, { code: 'NO_SPACE' })
  store.failing = undefined
  await journal.restart()
  journal.append(write(2, 2 * KiB))
  await journal.commit(2, at(2))
  t.same(await contentOf(store), { 2: [2] })
})

void t.test(
  'a commit does not wait for a segment to be made, also where the present one is full',
  async (t) => {
    const { journal, store } = await open(new MemorySegments(), 4 * KiB)
    journal.append(write(1, 2 * KiB))
    store.failing = 'create'
    await journal.commit(1, at(1))
    t.same(await contentOf(store), { 1: [1] })
    store.failing = undefined
    await journal.restart()
    journal.append(write(2, 512))
    await journal.commit(2, at(2))
    t.same(await contentOf(store), { 1: [1], 2: [2] })
  },
)

void t.test('segments go when every epoch in them is in the images', async (t) => {
  const { journal, store } = await open(new MemorySegments(), 16 * KiB)
  for (let checkpoint = 1; checkpoint <= 20; checkpoint += 1) {
    journal.append(write(checkpoint, 2 * KiB))
    await journal.commit(checkpoint, at(checkpoint))
  }
  t.ok(store.files.size > 5)
  const before = await contentOf(store)
  t.equal(Object.keys(before).length, 20)
  journal.flushed(0, 10)
  await journal.commit(21, at(21))
  const after = await contentOf(store)
  for (let checkpoint = 11; checkpoint <= 20; checkpoint += 1)
    t.same(after[checkpoint], [checkpoint], 'what is not flushed is kept')
  t.notOk(3 in after, 'what is flushed is gone')
  journal.flushed(0, 21)
  await journal.commit(22, at(22))
  t.ok(store.files.size <= 2)
  await journal.retire(0)
  await journal.close()
  t.same(await contentOf(store), {}, 'a retired journal brings nothing back')
  t.match(await scan(store), { committed: 22, flushed: [22] })
})

void t.test(
  'a header that is damaged is no journal only where none can have been before',
  async (t) => {
    const { store } = await open()
    const [first] = [...store.files.values()]
    const torn = Buffer.from(first!)
    torn.writeUInt8(0xff, 40)
    t.equal(await scan(MemorySegments.of([[1, torn]])), undefined)
    await t.rejects(scan(MemorySegments.of([[5, torn]])), { message: /segment 5 has no header/ })
  },
)

void t.test('an unknown format, and a segment of nobody, are refused', async (t) => {
  const { store } = await open()
  await t.rejects(scan(MemorySegments.of([[2, store.files.get(1)!]])), { code: 'IO' })
  const record = frame('segment', {
    position: 1,
    payload: Buffer.from(JSON.stringify({ format: 2 })),
  })
  const future = MemorySegments.of([[1, encodeFrame(record)]])
  await t.rejects(scan(future), { code: 'NOT_SUPPORTED' })
})

/** A journal with several segments, the checkpoints that were reported, and how many bytes were flushed then. */
async function written(): Promise<{
  store: MemorySegments
  reported: { checkpoint: number; segment: number; bytes: number }[]
}> {
  const { journal, store } = await open(new MemorySegments(), 12 * KiB)
  const reported = []
  for (let checkpoint = 1; checkpoint <= 8; checkpoint += 1) {
    if (checkpoint % 4 === 0) {
      journal.append(write(99))
      journal.discard()
    }
    for (let count = 0; count < checkpoint % 3; count += 1)
      journal.append(write(10 * checkpoint + count, 1 * KiB))
    await journal.commit(checkpoint, at(checkpoint))
    const segment = Math.max(...store.files.keys())
    reported.push({ checkpoint, segment, bytes: store.durable.get(segment)! })
  }
  journal.append(write(100))
  await journal.close()
  return { store, reported }
}

const wanted = (upTo: number): Record<number, number[]> =>
  Object.fromEntries(
    Array.from({ length: upTo }, (_, index) => [
      index + 1,
      Array.from({ length: (index + 1) % 3 }, (_, count) => 10 * (index + 1) + count),
    ]),
  )

void t.test(
  'cut at any byte, a journal holds what was reported by then, and nothing torn',
  async (t) => {
    const { store, reported } = await written()
    const numbers = [...store.files.keys()].sort((a, b) => a - b)
    t.ok(numbers.length > 2)
    let cuts = 0
    for (const last of numbers) {
      const content = store.files.get(last)!
      const before = numbers.filter((number) => number < last)
      for (let length = 0; length <= content.length; length += 1) {
        const cut = MemorySegments.of([
          ...before.map((number) => [number, store.files.get(number)!] as const),
          [last, content.subarray(0, length)],
        ])
        const least = reported.filter(
          ({ segment, bytes }) => segment < last || (segment === last && bytes <= length),
        ).length
        const found = await contentOf(cut)
        const count = Object.keys(found).length
        if (count < least || JSON.stringify(found) !== JSON.stringify(wanted(count)))
          t.same(found, wanted(least), `segment ${last} cut after ${length} bytes`)
        cuts += 1
      }
    }
    t.ok(cuts > 8 * KiB)
  },
)

void t.test('damaged anywhere, a journal gives a prefix of its epochs or a fault', async (t) => {
  const { store } = await written()
  const complete = [...store.files]
  await fc.assert(
    fc.asyncProperty(fc.nat(), fc.nat(), fc.integer({ min: 1, max: 255 }), async (a, b, flip) => {
      const [number, content] = complete[a % complete.length]!
      const damaged = Buffer.from(content)
      damaged[b % damaged.length]! ^= flip
      const copy = MemorySegments.of(complete)
      copy.files.set(number, damaged)
      try {
        const found = await contentOf(copy)
        t.same(found, wanted(Object.keys(found).length))
        const isLast = number === Math.max(...copy.files.keys())
        t.ok(isLast, 'only the end of the last segment may look torn')
      } catch (error) {
        if (!(error instanceof Fault)) throw error
      }
    }),
    { numRuns: 200 },
  )
})

void t.test('bytes of no journal are refused or hold nothing', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.uint8Array({ maxLength: 200 }), { maxLength: 3 }),
      async (files) => {
        const store = MemorySegments.of(
          files.map((bytes, index) => [index + 1, Buffer.from(bytes)] as const),
        )
        try {
          t.same(await contentOf(store), {})
        } catch (error) {
          if (!(error instanceof Fault)) throw error
        }
      },
    ),
  )
})

void t.test('what a given-up epoch filled is given back at once', async (t) => {
  const { journal, store } = await open(new MemorySegments(), 16 * KiB)
  journal.append(write(1))
  await journal.commit(1, at(1))
  journal.flushed(0, 1)
  for (let count = 0; count < 20; count += 1) journal.append(write(2, 2 * KiB))
  t.ok(journal.bytes > 16 * KiB)
  journal.discard()
  await journal.persist(STATE)
  // Segments go after what was asked for before.
  await journal.persist(STATE)
  t.ok(journal.bytes < 8 * KiB, `${journal.bytes} bytes are left`)
  t.ok(store.files.size <= 2)
  journal.append(write(3))
  await journal.commit(2, at(2))
  await journal.close()
  t.same((await contentOf(store))[2], [3])
})

void t.test('a disk that an epoch filled has room for a new segment', async (t) => {
  const store = new MemorySegments()
  store.capacity = 24 * KiB
  const { journal } = await open(store, 32 * KiB)
  journal.append(write(1))
  await journal.commit(1, at(1))
  journal.flushed(0, 1)
  for (let count = 0; count < 20; count += 1) journal.append(write(2, 2 * KiB))
  await t.rejects(journal.commit(2, at(2)), { code: 'NO_SPACE' })
  await journal.restart()
  journal.append(write(3))
  await journal.commit(3, at(3))
  await journal.close()
  t.same((await contentOf(store))[3], [3])
})

void t.test(
  'no commit waits while a segment is removed; its successor, and a close, do',
  async (t) => {
    const { journal, store } = await open(new MemorySegments(), 16 * KiB)
    let removed = (): void => undefined
    store.removing = new Promise((resolve) => (removed = resolve))
    const put = async (checkpoint: number): Promise<void> => {
      journal.append(write(checkpoint, 3 * KiB))
      await journal.commit(checkpoint, at(checkpoint))
      journal.flushed(0, checkpoint)
    }
    // The record behind the second commit begins the second segment, and the first is not needed any more.
    await put(1)
    await put(2)
    await journal.sync()
    t.same([...store.files.keys()], [1, 2])
    await put(3)
    t.same(
      [...store.files.keys()],
      [1, 2],
      'a commit came while the first segment was being removed',
    )
    // There may be room for no third one before the first is gone.
    void put(4)
    await turn()
    t.same([...store.files.keys()], [1, 2])
    const closed = journal.close()
    removed()
    await closed
    t.notOk(store.files.has(1))
    t.match(await scan(store), { committed: 4 })
  },
)

const TWO_DISKS = [...IDENTITY.disks, { name: 'b', size: 1 << 20 }]

void t.test(
  'a disk that is added while a commit is under way takes nothing of it back',
  async (t) => {
    const { journal, store } = await open()
    journal.append(write(1))
    // The commit says of a disk what nobody has been told yet.
    const committing = journal.commit(1, { ...at(1), apart: { a: 'partial' } })
    await Promise.all([
      committing,
      journal.change(TWO_DISKS, (apart) => ({ ...apart, b: 'partial' })),
    ])
    await journal.close()
    const { state } = (await scan(store)) ?? {}
    t.match(state, { checkpoint: 1, apart: { a: 'partial', b: 'partial' } })
  },
)

void t.test(
  'a disk that was added counts in no state of before, whatever fails then',
  async (t) => {
    for (const when of ['after a commit', 'during a commit']) {
      const { journal, store } = await open()
      const committing = journal.commit(1, at(1))
      if (when === 'after a commit') await committing
      await journal.change(TWO_DISKS, (apart) => ({ ...apart, b: 'partial' }))
      await committing
      store.failing = 'append'
      await t.rejects(journal.commit(2, { ...at(2), apart: { b: 'partial' } }), {
        code: 'NO_SPACE',
      })
      store.failing = undefined
      await journal.restart()
      await journal.close()
      t.match((await scan(store))?.state, { checkpoint: 1, apart: { b: 'partial' } }, when)
    }
  },
)

void t.test('a segment that cannot be removed holds the later ones back', async (t) => {
  const { journal, store } = await open(new MemorySegments(), 16 * KiB)
  store.failing = 'remove'
  for (let checkpoint = 1; checkpoint <= 10; checkpoint += 1) {
    journal.append(write(checkpoint, 2 * KiB))
    await journal.commit(checkpoint, at(checkpoint))
    journal.flushed(0, checkpoint)
  }
  const numbers = [...store.files.keys()].sort((a, b) => a - b)
  t.equal(numbers.at(-1), numbers.length, 'there is no gap')
  t.ok(numbers.length > 3)
  store.failing = undefined
  journal.flushed(0, 10)
  await journal.persist(STATE)
  await journal.close()
  t.ok(store.files.size <= 2)
  t.match(await scan(store), { committed: 10 })
})

void t.test(
  'a checkpoint that was reported and is damaged is missed, also in the newest segment',
  async (t) => {
    const { journal, store } = await open()
    for (let checkpoint = 1; checkpoint <= 4; checkpoint += 1) {
      journal.append(write(checkpoint))
      await journal.commit(checkpoint, at(checkpoint))
    }
    await journal.close()
    const [number, content] = [...store.files][0]!
    const lastMark = content.length - 32
    let refused = 0
    for (let at = 0; at < lastMark; at += 7) {
      const damaged = Buffer.from(content)
      damaged[at]! ^= 0x40
      await t.rejects(scan(MemorySegments.of([[number, damaged]])), { name: 'Fault' }, `byte ${at}`)
      refused += 1
    }
    t.ok(refused > 100)
    t.match(await scan(store), { committed: 4 })
  },
)

void t.test('a journal that is behind the images is refused', async (t) => {
  const { journal, store } = await open()
  await journal.commit(5, at(5))
  await journal.retire(0)
  await journal.close()
  const numbers = [...store.files.keys()]
  const header = store.files.get(Math.max(...numbers))!
  const text = header.toString('latin1').replace('"committed":5', '"committed":4')
  t.notOk(text === header.toString('latin1'))
  t.match(await scan(store), { committed: 5, flushed: [5] })
})

/** Segments whose flushes end when the test says so. */
class SlowSegments extends MemorySegments {
  flushed: (() => void) | undefined

  override async create(number: number): Promise<SegmentFile> {
    const file = await super.create(number)
    return {
      ...file,
      sync: async () => {
        if (this.slow) await new Promise<void>((resolve) => (this.flushed = resolve))
        await file.sync()
      },
    }
  }

  slow = false
}

void t.test('what was called committed stays so, whatever fails in that instant', async (t) => {
  const store = new SlowSegments()
  const { journal, failures } = await open(store)
  store.slow = true
  journal.append(write(1))
  let told = 0
  const committing = journal.commit(1, at(1), () => (told = 1)).catch(() => undefined)
  while (store.flushed === undefined) await new Promise(setImmediate)
  // The next record cannot be written while the commit is being flushed.
  store.failing = 'append'
  journal.append(write(2))
  await new Promise(setImmediate)
  store.flushed()
  await committing
  await new Promise(setImmediate)
  t.equal(failures.length, 1)
  store.failing = undefined
  store.slow = false
  await journal.restart()
  t.equal((await scan(store))?.committed, told)
})
