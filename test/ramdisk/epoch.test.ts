import fc from 'fast-check'
import t from 'tap'
import { Epoch, type HeldKind } from '../../ramdisk/epoch.ts'
import { PAGE, PageMemory, SLAB } from '../../ramdisk/page-memory.ts'
import { GiB, KiB, MiB, SECTOR, TiB } from '../../core/units.ts'
import { Fault } from '../../core/fault.ts'
import { tagged } from './unruly-image.ts'

/** Two leaves and a bit of the index, with a tail that is no whole sector. */
const SIZE = 70 * PAGE + 3 * SECTOR + 100
const SECTORS = Math.ceil(SIZE / SECTOR)

type Change =
  | { readonly op: 'write' | 'clear'; readonly first: number; readonly count: number }
  | {
      readonly op: 'zero'
      readonly first: number
      readonly count: number
      readonly punch: boolean
    }

const sectors = fc.record({
  first: fc.nat(SECTORS - 1),
  count: fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: SECTORS })),
})
const change: fc.Arbitrary<Change> = fc.oneof(
  { weight: 3, arbitrary: sectors.map((range) => ({ op: 'write' as const, ...range })) },
  {
    weight: 2,
    arbitrary: fc
      .tuple(sectors, fc.boolean())
      .map(([range, punch]) => ({ op: 'zero' as const, punch, ...range })),
  },
  { weight: 2, arbitrary: sectors.map((range) => ({ op: 'clear' as const, ...range })) },
)

function rangeOf({ first, count }: { first: number; count: number }) {
  const at = first * SECTOR
  return { at, length: Math.min(count * SECTOR, SIZE - at) }
}

/** What an epoch should be, byte by byte. */
class Model {
  readonly bytes = Buffer.alloc(SIZE, 0xee)
  readonly held = new Uint8Array(SECTORS)

  apply(change: Change, data: Buffer): void {
    const { at, length } = rangeOf(change)
    const end = at + length
    this.held.fill(change.op === 'clear' ? 0 : 1, at / SECTOR, Math.ceil(end / SECTOR))
    if (change.op === 'write') data.copy(this.bytes, at)
    else this.bytes.fill(change.op === 'zero' ? 0 : 0xee, at, end)
  }

  get heldBytes(): number {
    return this.held.reduce((sum, held) => sum + held, 0) * SECTOR
  }
}

function apply(epoch: Epoch, change: Change, data: Buffer): void {
  const { at, length } = rangeOf(change)
  if (change.op === 'write') epoch.write(data, at)
  else if (change.op === 'zero') epoch.zero(at, length, change.punch)
  else epoch.clear(at, length)
}

/** All that an epoch answers about a range is what the model says. */
function compare(epoch: Epoch, model: Model, at: number, length: number): void {
  const into = Buffer.alloc(length, 0xee)
  epoch.overlay(into, at)
  if (!into.equals(model.bytes.subarray(at, at + length))) throw new Error('other bytes')
  const held = model.held.subarray(at / SECTOR, Math.ceil((at + length) / SECTOR))
  if (epoch.covers(at, length) !== held.every((one) => one === 1)) throw new Error('other cover')
  const change = held.findIndex((one) => one !== held[0])
  const until = change === -1 ? at + length : at + change * SECTOR
  const same = epoch.sameUntil(at, at + length)
  if (same !== (held[0] === 1 ? until : -until)) throw new Error(`same until ${same}, not ${until}`)
}

void t.test('an epoch answers as an array of bytes would, after any changes', (t) => {
  fc.assert(
    fc.property(
      fc.array(change, { maxLength: 40, size: 'max' }),
      fc.array(sectors),
      (changes, reads) => {
        const memory = new PageMemory(64 * MiB)
        const epoch = new Epoch(memory, SIZE)
        const model = new Model()
        changes.forEach((change, index) => {
          const data = tagged(index + 1, rangeOf(change).length)
          apply(epoch, change, data)
          model.apply(change, data)
          if (epoch.bytes + epoch.zeroBytes !== model.heldBytes) throw new Error('other sum')
          if (epoch.isEmpty !== (model.heldBytes === 0)) throw new Error('emptiness')
          if (epoch.isEmpty && memory.bytesInUse !== 0) throw new Error('an empty one holds memory')
        })
        for (const read of [...reads, ...changes, { first: 0, count: SECTORS }]) {
          const { at, length } = rangeOf(read)
          compare(epoch, model, at, length)
        }
        epoch.release()
        if (memory.bytesInUse !== 0) throw new Error('memory is still in use')
      },
    ),
    { numRuns: 300 },
  )
  t.end()
})

void t.test(
  'the runs of an epoch are its held sectors, in order, by kind and no longer than asked',
  (t) => {
    const most = fc.integer({ min: 1, max: 40 }).map((count) => count * SECTOR)
    fc.assert(
      fc.property(
        fc.array(change, { maxLength: 20, size: 'max' }),
        most,
        most,
        (changes, data, zeroes) => {
          const epoch = new Epoch(new PageMemory(64 * MiB), SIZE)
          const model = new Model()
          changes.forEach((change, index) => {
            const data = tagged(index + 1, rangeOf(change).length)
            apply(epoch, change, data)
            model.apply(change, data)
          })
          const seen = new Uint8Array(SECTORS)
          let sums: Record<HeldKind, number> = { data: 0, punched: 0, kept: 0 }
          let from = 0
          for (;;) {
            const run = epoch.next(from, SIZE, data, zeroes)
            if (run === undefined) break
            if (run.at < from || run.length <= 0) throw new Error('out of order')
            if (run.length > (run.kind === 'data' ? data : zeroes)) throw new Error('too long')
            from = run.at + run.length
            seen.fill(1, run.at / SECTOR, Math.ceil(from / SECTOR))
            sums = { ...sums, [run.kind]: sums[run.kind] + Math.ceil(run.length / SECTOR) * SECTOR }
            const zero = model.bytes.subarray(run.at, from).every((byte) => byte === 0)
            if (run.kind !== 'data' && !zero) throw new Error('zeroes that are none')
          }
          if (Buffer.compare(seen, model.held) !== 0) throw new Error('other sectors')
          if (sums.data !== epoch.bytes) throw new Error('other sum of data')
          if (sums.punched + sums.kept !== epoch.zeroBytes) throw new Error('other sum of zeroes')
        },
      ),
      { numRuns: 200 },
    )
    t.end()
  },
)

void t.test('zeroes keep what was asked for them: a hole, or their space', (t) => {
  const kindsOf = (changes: (epoch: Epoch) => void) => {
    const epoch = new Epoch(new PageMemory(MiB), MiB)
    changes(epoch)
    const kinds: string[] = []
    for (let run = epoch.next(0, MiB); run; run = epoch.next(run.at + run.length, MiB))
      kinds.push(`${run.kind} ${run.at}+${run.length}`)
    return kinds
  }
  t.same(
    kindsOf((epoch) => epoch.zero(0, 64 * KiB, true)),
    ['punched 0+65536'],
  )
  t.same(
    kindsOf((epoch) => epoch.zero(0, 64 * KiB, false)),
    ['kept 0+65536'],
  )
  t.same(
    kindsOf((epoch) => {
      epoch.zero(0, 64 * KiB, true)
      epoch.zero(4096, 8192, false)
    }),
    ['punched 0+4096', 'kept 4096+8192', 'punched 12288+53248'],
  )
  t.same(
    kindsOf((epoch) => {
      epoch.zero(0, 8192, true)
      epoch.zero(512, 512, false)
    }),
    ['kept 0+4096', 'punched 4096+4096'],
    'a page of both keeps its space',
  )
  t.same(
    kindsOf((epoch) => {
      epoch.write(Buffer.alloc(512, 1), 1024)
      epoch.zero(512, 2048, true)
    }),
    ['punched 512+2048'],
    'zeroes over all the data of a page leave none',
  )
  t.end()
})

void t.test(
  'zeroing or trimming a terabyte takes a few pages, and so does forgetting a part of it',
  (t) => {
    const memory = new PageMemory(SLAB)
    const epoch = new Epoch(memory, 4 * TiB + 512)
    epoch.zero(SECTOR, 4 * TiB, true)
    t.equal(epoch.zeroBytes, 4 * TiB)
    t.equal(epoch.bytes, 0)
    t.equal(memory.bytesInUse, SLAB)
    epoch.clear(1 * TiB + SECTOR, 1 * TiB)
    epoch.write(Buffer.alloc(SECTOR, 7), 3 * TiB + SECTOR)
    t.equal(epoch.zeroBytes + epoch.bytes, 3 * TiB)
    t.equal(epoch.bytes, PAGE, 'the page that was written to is data as a whole')
    t.notOk(epoch.covers(1 * TiB, 2 * SECTOR))
    t.equal(epoch.sameUntil(1 * TiB + SECTOR, 4 * TiB), -(2 * TiB + SECTOR))
    const into = Buffer.alloc(3 * SECTOR, 1)
    epoch.overlay(into, 3 * TiB)
    t.ok(into.equals(Buffer.concat([Buffer.alloc(512), Buffer.alloc(512, 7), Buffer.alloc(512)])))
    t.equal(memory.bytesInUse, SLAB)
    epoch.clear(0, 4 * TiB + 512)
    t.ok(epoch.isEmpty)
    t.equal(memory.bytesInUse, 0)
    t.end()
  },
)

void t.test('a disk of petabytes is indexed to its last sector', (t) => {
  const size = 7 * 1024 * TiB
  const epoch = new Epoch(new PageMemory(MiB), size)
  const places = [0, 8 * TiB - SECTOR, 8 * TiB, 16 * TiB, 4096 * TiB, size - SECTOR]
  places.forEach((at, index) => epoch.write(tagged(index + 1, SECTOR), at))
  const found: number[] = []
  for (let run = epoch.next(0, size); run; run = epoch.next(run.at + run.length, size))
    found.push(...(run.length === SECTOR ? [run.at] : [run.at, run.at + SECTOR]))
  t.same(found, places)
  places.forEach((at, index) => {
    const into = Buffer.alloc(SECTOR)
    epoch.overlay(into, at)
    t.ok(into.equals(tagged(index + 1, SECTOR)), `sector at ${at}`)
  })
  t.end()
})

void t.test('at the memory limit a change is refused and changes nothing', (t) => {
  const few = fc.integer({ min: 0, max: 3 })
  fc.assert(
    fc.property(
      few,
      fc.array(change, { minLength: 5, maxLength: 60, size: 'max' }),
      (slabs, changes) => {
        const memory = new PageMemory(slabs * SLAB + 100)
        const other = new Epoch(memory, SIZE)
        const epoch = new Epoch(memory, SIZE)
        if (slabs > 1) other.write(Buffer.alloc(SECTOR), 0)
        const model = new Model()
        changes.forEach((change, index) => {
          const { at, length } = rangeOf(change)
          const data = tagged(index + 1, length)
          const sure = memory.canHold(length)
          const before = memory.bytesInUse
          try {
            apply(epoch, change, data)
            model.apply(change, data)
          } catch (error) {
            if (!(error instanceof Fault) || error.code !== 'NO_MEMORY') throw error
            if (sure) throw new Error('refused what canHold() granted', { cause: error })
            if (change.op === 'clear')
              throw new Error('forgetting is never refused', { cause: error })
            if (memory.bytesInUse !== before) throw new Error('a refused change took memory')
          }
          if (memory.bytesInUse > memory.limit) throw new Error('over the limit')
          compare(epoch, model, at, length)
          if (epoch.bytes + epoch.zeroBytes !== model.heldBytes) throw new Error('other sum')
        })
        compare(epoch, model, 0, SIZE)
      },
    ),
    { numRuns: 200 },
  )
  t.end()
})

void t.test('what is held already can be overwritten at the limit', (t) => {
  const memory = new PageMemory(SLAB)
  const epoch = new Epoch(memory, 64 * MiB)
  let held = 0
  t.throws(
    () => {
      for (;;) {
        epoch.write(Buffer.alloc(PAGE, 1), held * PAGE)
        held += 1
      }
    },
    { code: 'NO_MEMORY' },
  )
  t.ok(held >= 60, `${held} of 64 pages hold data`)
  for (let page = 0; page < held; page += 1) epoch.write(Buffer.alloc(PAGE, 2), page * PAGE)
  epoch.write(Buffer.alloc(held * PAGE, 3), 0)
  const into = Buffer.alloc(held * PAGE)
  epoch.overlay(into, 0)
  t.ok(into.every((byte) => byte === 3))
  t.end()
})

void t.test('memory stays within 1.1 times the dirty pages and 8 MiB, however they lie', (t) => {
  const layouts: Record<string, (index: number) => number> = {
    'one after the other': (index) => index * PAGE,
    'every other': (index) => index * 2 * PAGE,
    'one in 128 KiB': (index) => index * 128 * KiB,
    'one in 4 MiB': (index) => index * 4 * MiB,
    'one in 128 MiB': (index) => index * 128 * MiB,
    'one in 4 GiB': (index) => index * 4 * GiB,
    anywhere: (index) => (Math.imul(index, 0x9e3779b1) >>> 0) * PAGE,
  }
  const data = Buffer.alloc(PAGE, 1)
  for (const [name, place] of Object.entries(layouts)) {
    const memory = new PageMemory(GiB)
    const epoch = new Epoch(memory, 128 * TiB)
    for (let index = 0; index < 20_000; index += 1) epoch.write(data, place(index))
    t.equal(epoch.bytes, 20_000 * PAGE)
    t.ok(memory.bytesInUse <= 1.1 * epoch.bytes + 8 * MiB, `pages ${name}`)
    t.ok(memory.bytesAllocated <= memory.bytesInUse)
    epoch.release()
    t.equal(memory.bytesInUse, 0)
  }
  t.end()
})

void t.test('using an epoch wrongly is a bug that stops', (t) => {
  const epoch = new Epoch(new PageMemory(MiB), SIZE)
  t.throws(() => epoch.write(Buffer.alloc(512), 100), { name: 'AssertionFailure' })
  t.throws(() => epoch.write(Buffer.alloc(100), 0), { name: 'AssertionFailure' })
  t.throws(() => epoch.zero(0, SIZE + 412, true), { name: 'AssertionFailure' })
  t.throws(() => epoch.clear(-512, 512), { name: 'AssertionFailure' })
  epoch.release()
  t.throws(() => epoch.release(), { name: 'AssertionFailure' })
  t.throws(() => epoch.write(Buffer.alloc(512), 0), { name: 'AssertionFailure' })
  t.end()
})
