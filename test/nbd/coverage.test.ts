import assert from 'node:assert/strict'

import fc from 'fast-check'
import t from 'tap'

import { Coverage } from '../../nbd/coverage.ts'

void t.test('each byte is taken once, in whatever order, and all of them make the whole', (t) => {
  const piece = fc.tuple(fc.integer({ min: -2, max: 60 }), fc.integer({ min: 0, max: 20 }))
  fc.assert(
    fc.property(fc.nat(50), fc.array(piece, { maxLength: 30 }), (length, pieces) => {
      const at = 5
      const coverage = new Coverage(at, length)
      const given = new Set<number>()
      for (const [from, size] of pieces) {
        const bytes = Array.from({ length: size }, (_, index) => from + index)
        const fits = bytes.every((byte) => byte >= at && byte < at + length && !given.has(byte))
        assert.equal(coverage.add(from, size), fits && size > 0, `${from}+${size}`)
        if (fits) for (const byte of bytes) given.add(byte)
        assert.equal(coverage.complete, given.size === length)
      }
    }),
    { numRuns: 1000 },
  )
  t.end()
})
