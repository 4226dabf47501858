import fc from 'fast-check'
import t from 'tap'

import { allSet, bitAt, runEnd, setBit, setBits } from '../../../formats/vhd/bits.ts'

void t.test('the first bit is the highest one', (t) => {
  const map = Buffer.alloc(2)
  setBit(map, 0)
  setBit(map, 9)
  t.same([...map], [0x80, 0x40])
  t.end()
})

void t.test('ranges and runs agree with single bits', (t) => {
  const range = fc.tuple(fc.nat(64), fc.nat(64)).map(([a, b]) => [Math.min(a, b), Math.max(a, b)])
  fc.assert(
    fc.property(fc.array(range, { maxLength: 4 }), fc.nat(63), (ranges, from) => {
      const map = new Uint8Array(8)
      const model = Array.from({ length: 64 }, () => false)
      for (const [start = 0, end = 0] of ranges) {
        setBits(map, start, end)
        model.fill(true, start, end)
      }
      const found = model.map((_, index) => bitAt(map, index))
      const differs = model.findIndex((bit, index) => index > from && bit !== model[from])
      t.same(found, model)
      t.equal(runEnd(map, from, 64), differs === -1 ? 64 : differs)
      t.equal(allSet(map, from), model.slice(0, from).every(Boolean))
    }),
  )
  t.end()
})
