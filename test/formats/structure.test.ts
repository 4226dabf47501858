import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../core/fault.ts'
import {
  bytes,
  letters,
  structure,
  times,
  u16,
  u32,
  u64,
  u8,
  word64,
} from '../../formats/structure.ts'

const POINT = structure('point', 4, { x: [0, u16], y: [2, u16] })
const SHAPE = structure('shape', 42, {
  magic: [0, letters(4)],
  length: [4, u64],
  features: [12, word64],
  kind: [20, u32],
  flag: [24, u8],
  id: [25, bytes(5)],
  corners: [30, times(3, POINT)],
})

void t.test('a structure reads its fields at the offsets of its table, big-endian', (t) => {
  const given = Buffer.from(Array.from({ length: 44 }, (_, index) => index))
  given.write('SHAP', 2, 'latin1')
  given.fill(0, 6, 10)
  t.same(SHAPE.read(given, 2), {
    magic: 'SHAP',
    length: 0x0a0b0c0d,
    features: 0x0e0f101112131415n,
    kind: 0x16171819,
    flag: 0x1a,
    id: Buffer.from([0x1b, 0x1c, 0x1d, 0x1e, 0x1f]),
    corners: [
      { x: 0x2021, y: 0x2223 },
      { x: 0x2425, y: 0x2627 },
      { x: 0x2829, y: 0x2a2b },
    ],
  })
  t.equal(SHAPE.offsetOf('kind'), 20)
  t.end()
})

void t.test('rewriting a structure that was read changes no byte', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 42, maxLength: 42 }), (random) => {
      const given = Buffer.from(random)
      given.fill(0, 4, 6) // the length is a safe integer
      return SHAPE.bytesOf(SHAPE.read(given)).equals(given)
    }),
  )
  t.end()
})

void t.test('bytes that were read stay as they are when their source is reused', (t) => {
  const source = Buffer.alloc(42, 0)
  const { id } = SHAPE.read(source)
  source.fill(0xff)
  t.ok(id.equals(Buffer.alloc(5)))
  t.end()
})

void t.test('a 64-bit size beyond 2^53 is refused, with the field that has it', (t) => {
  const given = Buffer.alloc(42)
  given.writeBigUInt64BE(2n ** 53n - 1n, 4)
  t.equal(SHAPE.read(given).length, Number.MAX_SAFE_INTEGER)
  for (const value of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
    given.writeBigUInt64BE(value, 4)
    t.throws(() => SHAPE.read(given), new Fault('INVALID', wrong(value)))
  }
  t.end()

  function wrong(value: bigint): string {
    return `shape: length: 0x${value.toString(16)} is no size or offset of a real disk`
  }
})

void t.test('a table that leaves a gap, overlaps or misses its size does not load', (t) => {
  const mistakes: readonly (() => unknown)[] = [
    () => structure('gap', 4, { a: [0, u8], b: [2, u16] }),
    () => structure('overlap', 3, { a: [0, u16], b: [1, u16] }),
    () => structure('short', 4, { a: [0, u16] }),
    () => structure('long', 2, { a: [0, u16], b: [2, u16] }),
  ]
  for (const declare of mistakes) t.throws(declare, { name: 'AssertionFailure' })
  t.end()
})

void t.test('a value that does not fit its field is a bug', (t) => {
  const good = SHAPE.read(Buffer.alloc(42))
  const wrong = [
    { ...good, magic: 'toolong' },
    { ...good, id: Buffer.alloc(4) },
    { ...good, corners: [{ x: 0, y: 0 }] },
    { ...good, length: -1 },
    { ...good, length: 2 ** 53 },
  ]
  for (const value of wrong)
    t.throws(() => SHAPE.bytesOf(value), { name: 'AssertionFailure' }, JSON.stringify(value.length))
  t.end()
})
