import fc from 'fast-check'
import t from 'tap'

import { GiB, KiB, MiB } from '../../../core/units.ts'
import { chsOf, chsSize } from '../../../formats/vhd/geometry.ts'

/** As vhd-util and qemu-img print it for images of these sizes. */
const KNOWN: readonly (readonly [size: number, c: number, h: number, s: number])[] = [
  [64 * KiB, 1, 4, 17],
  [50 * MiB, 1003, 6, 17],
  [100 * MiB, 1003, 12, 17],
  [300 * MiB, 609, 16, 63],
  [504 * MiB, 1024, 16, 63],
  [1 * GiB, 2080, 16, 63],
  [127 * GiB, 65278, 16, 255],
  [2040 * GiB, 65535, 16, 255],
]

for (const [size, cylinders, heads, sectorsPerTrack] of KNOWN) {
  void t.test(`${size} bytes are ${cylinders}/${heads}/${sectorsPerTrack}`, (t) => {
    t.same(chsOf(size), { cylinders, heads, sectorsPerTrack })
    t.end()
  })
}

void t.test('a geometry spans no more than the disk', (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: (2040 * GiB) / 512 }), (sectors) => {
      const geometry = chsOf(sectors * 512)
      return chsSize(geometry) <= sectors * 512 && geometry.cylinders <= 65_535
    }),
  )
  t.end()
})
