import fc from 'fast-check'
import t from 'tap'

import { Differences, MOST_LISTED } from '../../../replication/comparison/differences.ts'

const NAMES = ['a', 'b']

void t.test('neighbours are one range, whatever order they come in', (t) => {
  const pieces = Array.from({ length: 40 }, (_, index) => index).filter((index) => index % 7 !== 3)
  const expected = [
    { disk: 'b', at: 0, length: 30 },
    ...[40, 110, 180, 250, 320].map((at) => ({ disk: 'b', at, length: 60 })),
    { disk: 'b', at: 390, length: 10 },
  ]
  fc.assert(
    fc.property(fc.shuffledSubarray(pieces, { minLength: pieces.length }), (order) => {
      const differences = new Differences()
      for (const piece of order) differences.add(1, piece * 10, 10)
      differences.add(0, 5, 1)
      t.same(differences.ranges(NAMES), [{ disk: 'a', at: 5, length: 1 }, ...expected])
      t.equal(differences.bytes, pieces.length * 10 + 1)
    }),
    { numRuns: 20 },
  )
  t.end()
})

void t.test('the list is bounded, the count is not', (t) => {
  const differences = new Differences()
  for (let piece = 0; piece < 3 * MOST_LISTED; piece += 1) differences.add(0, piece * 20, 10)
  t.equal(differences.ranges(NAMES).length, MOST_LISTED)
  t.equal(differences.omitted, 2 * MOST_LISTED)
  t.equal(differences.bytes, 3 * MOST_LISTED * 10)
  differences.add(0, 10, 10)
  t.equal(differences.ranges(NAMES)[0]?.length, 30, 'what joins is still listed')
  t.equal(differences.ranges(NAMES).length, MOST_LISTED - 1)
  t.end()
})
