import fc from 'fast-check'
import t from 'tap'
import { RangeSet } from '../../core/range-set.ts'

const SPAN = 200
const range = fc.tuple(fc.nat(SPAN), fc.nat(40))
const changes = fc.array(fc.tuple(fc.boolean(), range), { maxLength: 60, size: 'max' })

/** The runs of ones in [at, at + length) of `bits`, as `within` gives them. */
function runsOf(bits: Uint8Array, at = 0, length = bits.length) {
  const runs: { at: number; length: number }[] = []
  for (let index = at; index < Math.min(at + length, bits.length); index += 1) {
    if (bits[index] !== 1) continue
    const last = runs.at(-1)
    if (last !== undefined && last.at + last.length === index) last.length += 1
    else runs.push({ at: index, length: 1 })
  }
  return runs
}

function build(list: readonly (readonly [boolean, readonly [number, number]])[]) {
  const set = new RangeSet()
  const bits = new Uint8Array(SPAN + 41)
  for (const [adds, [at, length]] of list) {
    if (adds) set.add(at, length)
    else set.remove(at, length)
    bits.fill(adds ? 1 : 0, at, at + length)
  }
  return { set, bits }
}

void t.test('a range set is a bitmap, kept as its runs', (t) => {
  fc.assert(
    fc.property(changes, range, (list, [at, length]) => {
      const { set, bits } = build(list)
      const runs = runsOf(bits)
      const part = [...bits.subarray(at, at + length)]
      const ahead = runsOf(bits, at)[0]
      const found = {
        runs: [...set],
        within: [...set.within(at, length)],
        next: set.next(at),
        total: set.total,
        size: set.size,
        isEmpty: set.isEmpty,
        covers: set.covers(at, length),
        intersects: set.intersects(at, length),
      }
      const wanted = {
        runs,
        within: runsOf(bits, at, length),
        next: ahead,
        total: bits.reduce((sum, bit) => sum + bit, 0),
        size: runs.length,
        isEmpty: runs.length === 0,
        covers: part.every((bit) => bit === 1),
        intersects: part.includes(1),
      }
      if (JSON.stringify(found) !== JSON.stringify(wanted))
        throw new Error(`${JSON.stringify(found)} is not ${JSON.stringify(wanted)}`)
    }),
    { numRuns: 2000 },
  )
  t.end()
})

void t.test('runs that touch become one', (t) => {
  const set = new RangeSet()
  set.add(0, 10)
  set.add(20, 10)
  set.add(10, 10)
  t.same([...set], [{ at: 0, length: 30 }])
  t.end()
})

void t.test('removing from the middle leaves both sides', (t) => {
  const set = new RangeSet()
  set.add(0, 30)
  set.remove(10, 5)
  t.same(
    [...set],
    [
      { at: 0, length: 10 },
      { at: 15, length: 15 },
    ],
  )
  t.equal(set.total, 25)
  set.clear()
  t.ok(set.isEmpty)
  t.equal(set.total, 0)
  t.end()
})

void t.test('a range beyond what numbers can count is a bug that stops', (t) => {
  const set = new RangeSet()
  t.throws(() => set.add(Number.MAX_SAFE_INTEGER, 1), { name: 'AssertionFailure' })
  t.throws(() => set.remove(-1, 1), { name: 'AssertionFailure' })
  t.end()
})
