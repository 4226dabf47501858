/** What a guest of a secondary gets while its copy changes under it. */

import t from 'tap'

import { Fault } from '../../core/fault.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import { DiskLayers } from '../../ramdisk/disk-layers.ts'
import { PageMemory } from '../../ramdisk/page-memory.ts'
import { NODE_TIMERS } from '../../replication/node-timers.ts'
import { SecondaryDisk } from '../../replication/secondary-disk.ts'
import { MemoryDevice } from '../nbd/memory-device.ts'

void t.test('a read that is under way when the copy becomes a mixture is refused', async (t) => {
  const memory = new PageMemory(MiB)
  const image = new MemoryDevice(64 * SECTOR)
  image.mode = 'held'
  const layers = new DiskLayers({
    ...{ image, memory, timers: NODE_TIMERS },
    onFlushed: () => undefined,
    onError: () => undefined,
  })
  const group = {
    ...{ memory, reception: { localLimit: MiB, hasLocalRoom: () => true }, stopping: false },
    useObjection: undefined as string | undefined,
  }
  const disk = new SecondaryDisk('disk', image, layers, group)
  const whole = disk.read(Buffer.alloc(SECTOR), 0)
  image.release()
  await whole
  const mixed = t.rejects(async () => disk.read(Buffer.alloc(SECTOR), 0), {
    code: 'NOT_PERMITTED',
  })
  await image.whenHeld(1)
  group.useObjection = 'it is being copied'
  image.release()
  await mixed
  t.throws(() => disk.read(Buffer.alloc(SECTOR), 0), Fault, 'and so is what comes later')
})
