import fc from 'fast-check'
import t from 'tap'
import { crc32, crc32ByTable } from '../../core/crc32.ts'

void t.test('the check value of CRC-32 comes out', (t) => {
  for (const sum of [crc32, crc32ByTable]) {
    t.equal(sum(Buffer.from('123456789')), 0xcbf43926)
    t.equal(sum(Buffer.alloc(0)), 0)
  }
  t.end()
})

void t.test('both implementations agree, in one piece or in two', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(300), (bytes, cut) => {
      const sum = crc32(bytes)
      const [head, tail] = [bytes.subarray(0, cut), bytes.subarray(cut)]
      return (
        crc32ByTable(bytes) === sum &&
        crc32(tail, crc32(head)) === sum &&
        crc32ByTable(tail, crc32ByTable(head)) === sum
      )
    }),
  )
  t.end()
})
