/** What a guest of a secondary gets while its copy changes under it. */

import t from 'tap'

import { Fault } from '../../core/fault.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import { DiskLayers } from '../../ramdisk/disk-layers.ts'
import { PageMemory } from '../../ramdisk/page-memory.ts'
import { NODE_TIMERS } from '../../replication/node-timers.ts'
import { SecondaryDisk } from '../../replication/secondary-disk.ts'
import { MemoryDevice } from '../nbd/memory-device.ts'

/** A disk whose image holds its reads back, and the group that a test changes meanwhile. */
function stage() {
  const memory = new PageMemory(MiB)
  const image = new MemoryDevice(64 * SECTOR)
  image.mode = 'held'
  const layers = new DiskLayers({
    ...{ image, memory, timers: NODE_TIMERS },
    onFlushed: () => undefined,
    onError: () => undefined,
  })
  const group = {
    memory,
    reception: { localLimit: MiB, hasLocalRoom: () => true },
    stopping: false,
    mixtures: 0,
    objection: undefined as Fault | undefined,
    objectionTo: () => group.objection,
    mixturesOf: () => group.mixtures,
  }
  return { image, group, disk: new SecondaryDisk('disk', image, layers, group) }
}

void t.test('a read that is under way when the copy becomes a mixture is refused', async (t) => {
  const { image, group, disk } = stage()
  const whole = disk.read(Buffer.alloc(SECTOR), 0)
  image.release()
  await whole
  const mixed = t.rejects(async () => disk.read(Buffer.alloc(SECTOR), 0), {
    code: 'NOT_PERMITTED',
  })
  await image.whenHeld(1)
  group.objection = new Fault('NOT_PERMITTED', 'it is being copied')
  image.release()
  await mixed
  t.throws(() => disk.read(Buffer.alloc(SECTOR), 0), Fault, 'and so is what comes later')
})

void t.test('a read during which the copy was a mixture for a while is made again', async (t) => {
  const { image, group, disk } = stage()
  const into = Buffer.alloc(SECTOR)
  const reading = disk.read(into, 0)
  await image.whenHeld(1)
  group.mixtures += 1
  image.release()
  await image.whenHeld(1)
  image.bytes.fill(7)
  image.release()
  await reading
  t.ok(into.equals(Buffer.alloc(SECTOR, 7)), 'what it has found is of the whole copy')
})
