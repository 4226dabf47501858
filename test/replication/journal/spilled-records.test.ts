/** Data of a journal that is read back while the journal goes on. */

import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { SILENT } from '../../../core/logger.ts'
import { KiB } from '../../../core/units.ts'
import { Journal } from '../../../replication/journal/journal.ts'
import { frame, HEADER_SIZE } from '../../../replication/machine/frame.ts'
import { FRESH, type ReplicaState } from '../../../replication/machine/replica-state.ts'
import { MemorySegments } from './memory-segments.ts'

const at = (checkpoint: number): ReplicaState => ({ ...FRESH, generation: 'g1', checkpoint })

/** @param limit bytes; a segment is a quarter of it */
async function open(limit = 1 << 30): Promise<{ journal: Journal; store: MemorySegments }> {
  const store = new MemorySegments()
  const journal = new Journal({
    ...{ store, replica: 'r1', recovered: undefined, limit, logger: SILENT, state: at(0) },
    identity: { group: 'vm', disks: [{ name: 'a', size: 1 << 20 }] },
    onFailure: () => undefined,
  })
  await journal.restart()
  return { journal, store }
}

const write = (value: number, length = 1024) =>
  frame('write', { position: value * 512, payload: Buffer.alloc(length, value) })

function append(journal: Journal, value: number, length?: number): number {
  const place = journal.append(write(value, length))
  if (place === undefined) throw new Error('the journal has failed')
  return place
}

void t.test('what was appended is read back, also before it is written', async (t) => {
  const { journal } = await open()
  const places = [1, 2, 3].map((value) => append(journal, value))
  for (const [index, place] of places.entries()) {
    const value = index + 1
    const record = await journal.records.read(place, 1024)
    t.same([record.at, record.bytes.equals(Buffer.alloc(1024, value))], [value * 512, true])
  }
  await journal.commit(1, at(1))
  const [first = 0] = places
  t.match(await journal.records.read(first, 1024), { at: 512 })
})

void t.test('what will never be written is not read', async (t) => {
  const { journal, store } = await open()
  store.failing = 'append'
  const place = append(journal, 1)
  await t.rejects(async () => journal.records.read(place, 1024), { code: 'NO_SPACE' })
  t.equal(journal.append(write(2)), undefined, 'and nothing more is taken')
})

void t.test('a record with any wrong byte is refused', async (t) => {
  const { journal, store } = await open()
  append(journal, 1, 512)
  const place = append(journal, 2, 512)
  append(journal, 3, 512)
  await journal.sync()
  const [[number, content] = [0, Buffer.alloc(0)]] = store.files
  const offset = content.indexOf(Buffer.alloc(512, 2)) - HEADER_SIZE
  let refused = 0
  for (let byte = offset; byte < offset + HEADER_SIZE + 512; byte += 1) {
    const damaged = Buffer.from(content)
    damaged[byte]! ^= 0x10
    store.files.set(number, damaged)
    const read = async () => journal.records.read(place, 512)
    await read().catch((error: unknown) => {
      refused += error instanceof Fault && error.code === 'IO' ? 1 : 0
    })
  }
  t.equal(refused, HEADER_SIZE + 512)
  store.files.set(number, content.subarray(0, offset + 100))
  await t.rejects(async () => journal.records.read(place, 512), { code: 'IO' }, 'cut off')
  store.files.set(number, content)
  await t.rejects(async () => journal.records.read(place, 1024), { code: 'IO' }, 'another length')
  t.match(await journal.records.read(place, 512), { at: 1024 })
})

void t.test('segments stay while somebody reads them, and only those', async (t) => {
  const { journal, store } = await open(64 * KiB)
  const places: number[] = []
  for (let checkpoint = 1; checkpoint <= 3; checkpoint += 1) {
    for (let count = 0; count < 20; count += 1) places.push(append(journal, checkpoint))
    await journal.commit(checkpoint, at(checkpoint))
  }
  const numbers = (): number[] => [...store.files.keys()]
  const [first = 0, middle = 0] = [places[0], places[20]]
  t.ok(numbers().length >= 4)
  const unpin = journal.records.pin(middle)
  const again = journal.records.pin(middle)
  journal.flushed(0, 3)
  await journal.sync()
  await journal.persist(at(3))
  const kept = numbers()
  t.match(await journal.records.read(middle, 1024), { at: 1024 })
  await t.rejects(async () => journal.records.read(first, 1024), { code: 'IO' })
  unpin()
  await journal.persist(at(3))
  t.same(numbers(), kept)
  again()
  await journal.persist(at(3))
  t.ok(numbers().length < kept.length, 'the rest goes with the last reader')
  await t.rejects(async () => journal.records.read(middle, 1024), { code: 'IO' })
  t.equal(journal.failure, undefined)
})

void t.test('what a disk that leaves may still read is kept until it has', async (t) => {
  const { journal, store } = await open(4096)
  const place = append(journal, 1)
  await journal.commit(1, at(1))
  const release = journal.keep()
  await journal.change([{ name: 'b', size: 1 << 20 }], () => ({}))
  append(journal, 2)
  await journal.commit(2, at(2))
  journal.flushed(0, 2)
  await journal.persist(at(2))
  t.match(await journal.records.read(place, 1024), { at: 512 })
  const before = store.files.size
  release()
  await journal.persist(at(2))
  t.ok(store.files.size < before, 'and then it goes')
})
