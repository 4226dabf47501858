import fc from 'fast-check'
import t from 'tap'

import { SECTOR } from '../../../core/units.ts'
import { RequestQueue } from '../../../replication/blktap2/request-queue.ts'
import { MOST_SENT, WRITE_HEADER_SIZE } from '../../../replication/blktap2/wire.ts'
import { frame, type Frame } from '../../../replication/machine/frame.ts'
import { OldSecondary } from './old-wire.ts'

const SIZE = 64 * 1024
const WHOLE = WRITE_HEADER_SIZE + MOST_SENT

/** Sectors of a disk of SIZE that one request may have. */
const anyRange = fc
  .tuple(fc.nat(SIZE / SECTOR - 1), fc.integer({ min: 1, max: 40 }))
  .map(([sector, count]) => ({
    position: sector * SECTOR,
    length: Math.min(count * SECTOR, SIZE - sector * SECTOR),
  }))

const anyOutgoing: fc.Arbitrary<Frame> = fc.oneof(
  fc
    .tuple(anyRange, fc.integer({ min: 1, max: 255 }))
    .map(([{ position, length }, byte]) =>
      frame('write', { position, payload: Buffer.alloc(length, byte) }),
    ),
  anyRange.map(({ position, length }) => frame('zero', { position, extent: length })),
  fc.constant(frame('checkpoint', { position: 1 })),
)

void t.test(
  'an old secondary ends with the bytes of the primary, whatever the buffers are',
  (t) => {
    fc.assert(
      fc.property(
        fc.array(anyOutgoing, { maxLength: 30 }),
        fc.array(fc.integer({ min: WHOLE, max: 5 * WHOLE }), { minLength: 1, maxLength: 5 }),
        (frames, sizes) => {
          const disk = Buffer.alloc(SIZE)
          const queue = new RequestQueue()
          let handed = 0
          for (const each of [...frames, frame('checkpoint')]) {
            if (each.type === 'write') each.payload.copy(disk, each.position)
            if (each.type === 'zero') disk.fill(0, each.position, each.position + each.extent)
            queue.add(each, () => (handed += 1))
          }
          const secondary = new OldSecondary(SIZE)
          for (let round = 0; ; round += 1) {
            const buffer = Buffer.alloc(sizes[round % sizes.length]!, 0xdd)
            const length = queue.fill(buffer)
            if (length === 0) break
            secondary.receive(buffer.subarray(0, length))
            queue.taken()
          }
          t.equal(handed, frames.length + 1)
          t.same(secondary.complaints.slice(0, 3), [])
          t.ok(secondary.disk.equals(disk))
          t.ok(secondary.sizes.every((size) => size <= MOST_SENT))
          t.equal(secondary.commits, 1 + frames.filter(({ type }) => type === 'checkpoint').length)
        },
      ),
    )
    t.end()
  },
)

void t.test('bytes are handed over when they were taken, not when they were put', (t) => {
  const queue = new RequestQueue()
  const handed: string[] = []
  const payload = Buffer.alloc(2 * MOST_SENT, 1)
  queue.add(frame('write', { payload }), () => handed.push('first'))
  queue.add(frame('write', { payload }), () => handed.push('second'))
  const buffer = Buffer.alloc(3 * WHOLE)
  t.equal(queue.fill(buffer), 3 * WHOLE)
  t.same(handed, [])
  queue.taken()
  t.same(handed, ['first'], 'half of the second one is still to come')
  t.equal(queue.fill(buffer), WHOLE)
  queue.taken()
  t.same(handed, ['first', 'second'])
  t.equal(queue.fill(buffer), 0)
  t.end()
})

void t.test('everything is handed over once when the connection is gone', (t) => {
  const queue = new RequestQueue()
  const handed: number[] = []
  for (const number of [1, 2, 3])
    queue.add(frame('zero', { extent: MOST_SENT }), () => handed.push(number))
  queue.fill(Buffer.alloc(WHOLE))
  queue.drop()
  queue.drop()
  t.same(handed, [1, 2, 3])
  t.equal(queue.fill(Buffer.alloc(WHOLE)), 0)
  t.end()
})

void t.test('a whole disk of zeroes takes no memory, and many small writes leave in order', (t) => {
  const queue = new RequestQueue()
  queue.add(frame('zero', { position: 2 ** 40, extent: 2 ** 40 }))
  const buffer = Buffer.alloc(2 * WHOLE)
  for (let round = 0; round < 100; round += 1) t.equal(queue.fill(buffer), 2 * WHOLE)
  t.equal(Number(buffer.readBigUInt64LE(WHOLE + 8)) * SECTOR, 2 ** 40 + 199 * MOST_SENT)

  const many = new RequestQueue()
  const sectors: number[] = []
  for (let sector = 0; sector < 5000; sector += 1)
    many.add(frame('write', { position: sector * SECTOR, payload: Buffer.alloc(SECTOR, 1) }))
  for (let length = many.fill(buffer); length > 0; length = many.fill(buffer))
    for (let at = 0; at < length; at += WRITE_HEADER_SIZE + SECTOR)
      sectors.push(Number(buffer.readBigUInt64LE(at + 8)))
  t.same(
    sectors,
    Array.from({ length: 5000 }, (_, sector) => sector),
  )
  t.end()
})
