import t from 'tap'

import { FAST_ZERO, NO_HOLE } from '../../core/block-device.ts'
import { ram, RamDevice } from '../../drivers/ram.ts'
import { openContext } from './open-context.ts'

const MiB = 1024 * 1024

void t.test('memory is taken where something is written, and given back', (t) => {
  const disk = new RamDevice(1024 * 1024 * MiB)
  t.equal(disk.bytesAllocated, 0)
  disk.read(Buffer.alloc(MiB), 500 * MiB)
  disk.zero(0, 1024 * MiB, 0)
  t.equal(disk.bytesAllocated, 0)
  disk.write(Buffer.alloc(MiB, 1), 500 * MiB)
  t.equal(disk.bytesAllocated, MiB)
  t.strictSame(disk.status(499 * MiB, 3 * MiB), [
    { at: 499 * MiB, length: MiB, kind: 'hole' },
    { at: 500 * MiB, length: MiB, kind: 'data' },
    { at: 501 * MiB, length: MiB, kind: 'hole' },
  ])
  disk.trim(500 * MiB, MiB / 2)
  disk.zero(500 * MiB + MiB / 2, MiB / 2, 0)
  t.equal(disk.bytesAllocated, 0)
  disk.zero(500 * MiB, MiB, NO_HOLE)
  t.equal(disk.bytesAllocated, MiB, 'no hole means allocated')
  t.throws(() => disk.zero(0, MiB, NO_HOLE | FAST_ZERO), { code: 'NOT_SUPPORTED' })
  t.end()
})

void t.test('status of a huge disk stops early rather than late', (t) => {
  const disk = new RamDevice(1024 * 1024 * MiB)
  const extents = disk.status(0, 1024 * 1024 * MiB)
  t.equal(extents.length, 1)
  t.equal(extents[0]?.kind, 'hole')
  t.ok((extents[0]?.length ?? 0) > 0)
  t.end()
})

void t.test('clearing far more than there is leaves exactly what is around it', (t) => {
  const size = 1024 * 1024 * MiB + 5
  for (const [from, to] of [
    [1, size],
    [MiB / 2, size - 3],
    [16 * 1024, size],
    [16 * 1024 + 1, 1024 * MiB],
  ] as const) {
    const disk = new RamDevice(size)
    const written = [0, 16 * 1024, MiB / 2 - 4, 1024 * MiB - 4, size - 8]
    for (const at of written) disk.write(Buffer.alloc(8, 1), at)
    disk.trim(from, to - from)
    for (const at of written) {
      const into = Buffer.alloc(8)
      disk.read(into, at)
      const expected = Buffer.from(
        into.map((_, index) => Number(at + index < from || at + index >= to)),
      )
      t.strictSame(into, expected, `${at} after clearing ${from} to ${to}`)
    }
  }
  t.end()
})

void t.test('a disk that grows again shows zeroes', async (t) => {
  const disk = new RamDevice(MiB)
  disk.write(Buffer.alloc(MiB, 1), 0)
  await disk.resize(100)
  await disk.resize(MiB)
  const all = Buffer.alloc(MiB, 2)
  disk.read(all, 0)
  t.ok(all.subarray(0, 100).every((byte) => byte === 1))
  t.ok(all.subarray(100).every((byte) => byte === 0))
})

void t.test('the target is a size', async (t) => {
  const stage = (target: string) => ({ driver: 'ram', target, settings: new Map<string, string>() })
  const open = async (target: string) => ram.open(stage(target), undefined, openContext())
  t.equal((await open('1.5K')).geometry.size, 1536)
  await t.rejects(open('0'), { code: 'INVALID' })
  await t.rejects(open('much'), { code: 'INVALID', message: /not a size/ })
})
