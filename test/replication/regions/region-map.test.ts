/** A map of changed regions over a store that fails and takes its time. */

import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { KiB } from '../../../core/units.ts'
import { RegionMap } from '../../../replication/regions/region-map.ts'
import {
  bitmapBytes,
  memoryRegions,
  type RegionStore,
} from '../../../replication/regions/region-store.ts'

const REGION = 64 * KiB
/** Two sectors of bits, and a part of a region. */
const REGIONS = 5000
const SIZE = (REGIONS - 1) * REGION + 512

/** What survives a crash, and when; each save waits to be answered while `held`. */
class UnreliableStore implements RegionStore {
  readonly regionBytes = REGION
  readonly found: Buffer
  readonly durable: Buffer
  failing = false
  held = false
  closed = false
  saves = 0
  #waiting: (() => void)[] = []

  constructor(found = Buffer.alloc(bitmapBytes(SIZE, REGION))) {
    this.found = found
    this.durable = Buffer.from(found)
  }

  async save(bitmap: Buffer, sectors: readonly number[]): Promise<void> {
    this.saves += 1
    if (this.held) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    if (this.failing) throw new Fault('NO_SPACE', 'no space for the map')
    for (const sector of sectors)
      bitmap.copy(this.durable, sector * 512, sector * 512, (sector + 1) * 512)
  }

  close(): Promise<void> {
    this.closed = true
    return Promise.resolve()
  }

  release(): void {
    for (const answer of this.#waiting.splice(0)) answer()
  }

  /** Whether a crash now leaves a region marked. */
  remembers(region: number): boolean {
    return ((this.durable[region >> 3] ?? 0) & (1 << (region & 7))) !== 0
  }
}

const nothing = (): boolean => false
const flushed = (): Promise<void> => Promise.resolve()
/** What was begun goes on as far as it can. */
const turn = (): Promise<void> => new Promise(setImmediate)

void t.test('a mark is durable when it resolves, and has() is true only then', async (t) => {
  const store = new UnreliableStore()
  const map = new RegionMap(store, SIZE)
  store.held = true
  t.equal(map.has(0, 1), false)
  const marking = map.mark(REGION - 1, 2)
  await turn()
  t.same([map.has(0, 1), map.has(REGION, 1), store.remembers(0)], [false, false, false])
  store.release()
  await marking
  t.same([store.remembers(0), store.remembers(1), store.remembers(2)], [true, true, false])
  t.same([map.has(0, 2 * REGION), map.has(0, 2 * REGION + 1)], [true, false])
  t.same(map.ranges(), [{ at: 0, length: 2 * REGION }])
})

void t.test('a mark that cannot be saved fails, and the next one saves it too', async (t) => {
  const store = new UnreliableStore()
  const map = new RegionMap(store, SIZE)
  store.failing = true
  await t.rejects(map.mark(0, 1), { code: 'NO_SPACE' })
  t.equal(map.has(0, 1), false, 'nothing may be written')
  await t.rejects(map.mark(0, 1), { code: 'NO_SPACE' }, 'it is tried again')
  store.failing = false
  await map.mark(4500 * REGION, 1)
  t.same([store.remembers(0), store.remembers(4500)], [true, true])
  t.equal(map.has(0, 1), true)
})

void t.test('marks that come while the store is busy share its next save', async (t) => {
  const store = new UnreliableStore()
  const map = new RegionMap(store, SIZE)
  store.held = true
  const marking = [map.mark(0, 1)]
  await turn()
  for (let region = 1; region < 100; region += 1) marking.push(map.mark(region * REGION, 1))
  store.held = false
  store.release()
  await Promise.all(marking)
  t.equal(store.saves, 2)
  t.same(map.ranges(), [{ at: 0, length: 100 * REGION }])
  for (let region = 0; region < 100; region += 1) t.ok(store.remembers(region))
})

void t.test('a mark during a save that fails is not failed by it', async (t) => {
  const store = new UnreliableStore()
  const map = new RegionMap(store, SIZE)
  store.held = true
  const first = map.mark(0, 1)
  await turn()
  const second = map.mark(REGION, 1)
  store.failing = true
  store.release()
  await t.rejects(first, { code: 'NO_SPACE' })
  await turn()
  store.failing = false
  store.release()
  await second
  t.same([store.remembers(0), store.remembers(1)], [true, true])
})

void t.test(
  'a region is marked again for whoever marks it while it is being cleared',
  async (t) => {
    const store = new UnreliableStore()
    const map = new RegionMap(store, SIZE)
    await map.mark(0, 1)
    await map.retain(nothing, flushed)
    store.held = true
    const clearing = map.retain(nothing, flushed)
    await turn()
    t.equal(map.has(0, 1), false)
    const marking = map.mark(0, 1)
    store.held = false
    store.release()
    await Promise.all([clearing, marking])
    t.same([map.has(0, 1), store.remembers(0)], [true, true])
  },
)

void t.test('a mark that a clear overtakes is made again before it resolves', async (t) => {
  const store = new UnreliableStore()
  const map = new RegionMap(store, SIZE)
  store.held = true
  const marking = map.mark(0, 1)
  await turn()
  const clearing = map.clear(Infinity)
  store.held = false
  store.release()
  await Promise.all([marking, clearing])
  t.same([map.has(0, 1), store.remembers(0)], [true, true])
})

void t.test('what differs, or cannot be flushed, stays marked', async (t) => {
  const store = new UnreliableStore()
  const map = new RegionMap(store, SIZE)
  for (const region of [0, 1, 4999]) await map.mark(region * REGION, 1)
  const asked: (readonly [number, number])[] = []
  const dirty = (at: number, length: number): boolean => {
    asked.push([at, length])
    return at === REGION
  }
  await map.retain(dirty, flushed)
  t.same(asked, [], 'what was written lately is spared')
  await t.rejects(
    map.retain(nothing, () => Promise.reject(new Fault('IO', 'the image is broken'))),
    { code: 'IO' },
  )
  t.equal(map.ranges().length, 2)
  await map.retain(dirty, flushed)
  t.same(asked.slice(0, 3), [
    [0, REGION],
    [REGION, REGION],
    [4999 * REGION, 512],
  ])
  t.same(map.ranges(), [{ at: REGION, length: REGION }])
  t.same(
    [0, 1, 4999].map((region) => store.remembers(region)),
    [false, true, false],
  )
})

void t.test('nothing is flushed when nothing can be cleared', async (t) => {
  const map = new RegionMap(new UnreliableStore(), SIZE)
  const never = (): Promise<void> => Promise.reject(new Error('flushed'))
  await map.retain(nothing, never)
  await map.mark(0, 1)
  await map.retain(nothing, never)
  await map.retain(() => true, never)
  t.equal(map.ranges().length, 1)
})

void t.test('a clear that cannot be saved lets the map say too much', async (t) => {
  const store = new UnreliableStore()
  const map = new RegionMap(store, SIZE)
  await map.mark(0, 1)
  await map.mark(4500 * REGION, 1)
  store.failing = true
  await t.rejects(map.clear(Infinity), { code: 'NO_SPACE' })
  t.same([store.remembers(0), map.has(0, 1)], [true, false], 'it has to be marked again')
  store.failing = false
  await map.mark(4500 * REGION, 1)
  t.same([store.remembers(0), store.remembers(4500)], [false, true])
})

void t.test('a map begins with what its store has found', async (t) => {
  const full = new UnreliableStore(Buffer.alloc(bitmapBytes(SIZE, REGION), 0xff))
  const map = new RegionMap(full, SIZE)
  t.same(map.ranges(), [{ at: 0, length: SIZE }], 'the whole disk, and nothing beyond it')
  t.equal(map.has(0, SIZE), true)
  await map.clear(Infinity)
  t.same(map.ranges(), [])
  await map.close()
  t.equal(full.closed, true)
  t.same(new RegionMap(memoryRegions(SIZE, REGION), SIZE).ranges(), [])
})

void t.test('a map is closed when its last save has ended', async (t) => {
  const store = new UnreliableStore()
  const map = new RegionMap(store, SIZE)
  store.held = true
  const marking = map.mark(0, 1)
  await turn()
  const closing = map.close()
  await turn()
  t.equal(store.closed, false)
  store.release()
  await Promise.all([marking, closing])
  t.equal(store.closed, true)
})

void t.test(
  'a map that could not grow is one of the disk as it was, and grows later',
  async (t) => {
    const store = new UnreliableStore()
    const map = new RegionMap(store, SIZE)
    await map.mark(0, 1)
    const [far, near] = [9000 * REGION, SIZE + 2 * REGION]
    const larger = new UnreliableStore(Buffer.alloc(bitmapBytes(far, REGION)))
    larger.failing = true
    await t.rejects(
      map.grow(far, () => Promise.resolve(larger)),
      { code: 'NO_SPACE' },
    )
    const last = (REGIONS - 1) * REGION
    t.same(
      map.ranges(),
      [
        { at: 0, length: REGION },
        { at: last, length: 512 },
      ],
      'nothing beyond the end',
    )
    const gained = { at: last, length: near - last }
    const next = new UnreliableStore(Buffer.from(store.durable))
    await map.grow(near, () => Promise.resolve(next))
    t.same(map.ranges(), [{ at: 0, length: REGION }, gained])
    t.same(
      [0, 1, REGIONS - 1, REGIONS].map((region) => next.remembers(region)),
      [true, false, true, true],
    )
    t.equal(map.has(gained.at, gained.length), true)
    await map.clear(Infinity)
    t.same(map.ranges(), [])
  },
)
