/** A region stays marked while the image may lack what was written to it, however long the image takes. */

import t from 'tap'

import { RegionMap } from '../../../replication/regions/region-map.ts'
import { memoryRegions } from '../../../replication/regions/region-store.ts'
import { TrackedImage } from '../../../replication/tracked-image.ts'
import { MemoryDevice } from '../../nbd/memory-device.ts'

const REGION = 4096
const SIZE = 4 * REGION

/** What the secondary has committed: nothing differs from it. */
const committed = (): boolean => false
const flushed = (): Promise<void> => Promise.resolve()

void t.test('a pass that flushes for long clears nothing that was written meanwhile', async (t) => {
  const regions = new RegionMap(memoryRegions(SIZE, REGION), SIZE)
  await regions.mark(0, 512)
  await regions.retain(committed, flushed)
  let end = (): void => undefined
  const slow = new Promise<void>((resolve) => (end = resolve))
  const first = regions.retain(committed, () => slow)
  t.ok(regions.has(0, 512), 'a write after its flush has begun, which needs no mark')
  const second = regions.retain(committed, flushed)
  end()
  await Promise.all([first, second])
  t.same(regions.ranges(), [{ at: 0, length: REGION }])
})

void t.test('a region is not cleared while a write to it is under way', async (t) => {
  const regions = new RegionMap(memoryRegions(SIZE, REGION), SIZE)
  const below = new MemoryDevice(SIZE)
  const image = new TrackedImage(below)
  image.track(regions)
  await regions.mark(0, 512)
  below.mode = 'held'
  const writing = image.write(Buffer.alloc(512, 1), 0, 0)
  for (let pass = 0; pass < 3; pass += 1) await regions.retain(committed, flushed)
  t.same(regions.ranges(), [{ at: 0, length: REGION }])
  below.release()
  await writing
  t.same(regions.ranges(), [{ at: 0, length: REGION }])
  for (let pass = 0; pass < 3; pass += 1) await regions.retain(committed, flushed)
  t.same(regions.ranges(), [], 'it is cleared later')
})
