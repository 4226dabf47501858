import assert from 'node:assert/strict'

import fc from 'fast-check'
import t from 'tap'

import { ChangeMap } from '../../../drivers/log/change-map.ts'

const BLOCK = 512

/** All ranges of a map, each on the one before it. */
function ranges(map: ChangeMap): string[] {
  const found: string[] = []
  for (let range = map.next(0); range !== undefined; range = map.next(range.at + range.length)) {
    found.push(`${range.at}+${range.length}`)
  }
  return found
}

void t.test('a change marks every block that it touches', (t) => {
  const map = new ChangeMap(10 * BLOCK, BLOCK)
  t.strictSame(ranges(map), [])
  map.mark(511, 2)
  map.mark(5 * BLOCK, 1)
  t.strictSame(ranges(map), ['0+1024', '2560+512'])
  t.equal(map.changedBytes, 3 * BLOCK)
  map.mark(0, 1)
  t.equal(map.changedBytes, 3 * BLOCK, 'once is enough')
  t.end()
})

void t.test('a range begins where it is asked for and ends with the disk', (t) => {
  const map = new ChangeMap(1000, BLOCK)
  map.markAll()
  t.same(map.next(100), { at: 100, length: 900 })
  t.equal(map.next(1000), undefined)
  t.end()
})

void t.test('maps add up', (t) => {
  const [one, two] = [new ChangeMap(5120, BLOCK), new ChangeMap(5120, BLOCK)]
  one.mark(0, 600)
  two.mark(512, 600)
  one.add(two)
  t.strictSame(ranges(one), ['0+1536'])
  t.equal(one.changedBytes, 1536)
  t.end()
})

void t.test('what a disk gains counts as changed, what it loses is forgotten', (t) => {
  const map = new ChangeMap(4 * BLOCK, BLOCK)
  map.mark(0, 1)
  map.mark(3 * BLOCK, 1)
  map.resize(3 * BLOCK)
  t.strictSame(ranges(map), ['0+512'])
  map.resize(20 * BLOCK + 1)
  t.strictSame(ranges(map), ['0+512', `1536+${17 * BLOCK + 1}`])
  t.end()
})

void t.test('it is a set of blocks, whatever is marked', (t) => {
  const place = fc.tuple(fc.nat(20_000), fc.oneof(fc.nat(40), fc.nat(20_000)))
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 20_000 }), fc.array(place), (size, places) => {
      const map = new ChangeMap(size, BLOCK)
      const model = new Set<number>()
      for (const [from, wanted] of places) {
        const at = from % size
        const length = Math.min(wanted + 1, size - at)
        map.mark(at, length)
        for (let byte = at; byte < at + length; byte += 1) model.add(Math.floor(byte / BLOCK))
      }
      for (const again of [map, ChangeMap.of(size, BLOCK, map.bits)]) {
        const listed = new Set<number>()
        for (
          let next = again.next(0);
          next !== undefined;
          next = again.next(next.at + next.length)
        ) {
          assert.ok(next.length > 0 && next.at + next.length <= size)
          const end = next.at + next.length
          for (let at = next.at; at < end; at += BLOCK) listed.add(at / BLOCK)
          assert.ok(
            !listed.has(end / BLOCK) && !model.has(end / BLOCK),
            'a range is as long as it can be',
          )
        }
        assert.deepEqual([...listed].sort(), [...model].sort())
        assert.equal(again.changedBytes, model.size * BLOCK)
      }
    }),
  )
  t.end()
})
