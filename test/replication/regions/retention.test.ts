/** The passes of a primary over its maps of changed regions, when a disk below them is ill for a while. */

import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { SILENT } from '../../../core/logger.ts'
import { KiB, MiB } from '../../../core/units.ts'
import type { GroupEvent } from '../../../replication/group.ts'
import { RegionMap } from '../../../replication/regions/region-map.ts'
import { memoryRegions } from '../../../replication/regions/region-store.ts'
import { Retention } from '../../../replication/regions/retention.ts'
import { Troubles } from '../../../replication/troubles.ts'

const SICK = new Fault('IO', 'the disk is dead', { where: '/srv/a.img' })

/** A primary of one disk, of which nothing differs from the last checkpoint. */
function primary() {
  const disk = { image: 'well', map: 'well', flushes: 0 }
  const store = memoryRegions(MiB, 64 * KiB)
  const regions = new RegionMap(
    { ...store, save: () => (disk.map === 'well' ? Promise.resolve() : Promise.reject(SICK)) },
    MiB,
  )
  const events: GroupEvent[] = []
  const troubles = new Troubles('vm', { logger: SILENT, onEvent: (event) => events.push(event) })
  const flush = (): Promise<void> => {
    disk.flushes += 1
    return disk.image === 'well' ? Promise.resolve() : Promise.reject(SICK)
  }
  const retention = new Retention({
    machine: { committed: 1, nextDirty: () => undefined },
    disks: [{ below: { flush }, regions }],
    troubles,
  })
  return { disk, regions, events, troubles, retention }
}

for (const ill of ['image', 'map'] as const)
  void t.test(
    `a trouble with the ${ill} stands while it is ill, and ends when it is well again`,
    async (t) => {
      const { disk, regions, events, troubles, retention } = primary()
      await regions.mark(0, MiB)
      await retention.pass()
      disk[ill] = 'ill'
      for (let pass = 0; pass < 3; pass += 1) await retention.pass()
      t.match(troubles.first, /the disk is dead: \/srv\/a\.img.*tried again/)
      t.equal(events.length, 1, 'it is told once')
      disk[ill] = 'well'
      await retention.pass()
      await retention.pass()
      t.equal(troubles.first, null)
      t.same(regions.ranges(), [], 'and what was to be cleared is')
    },
  )

void t.test('a trouble ends also where no region is left that could be cleared', async (t) => {
  const { disk, regions, troubles, retention } = primary()
  await regions.mark(0, 64 * KiB)
  await retention.pass()
  disk.image = 'ill'
  await retention.pass()
  t.match(troubles.first, /the disk is dead/)
  // Whoever writes keeps the region from being clean.
  regions.hold(0, 64 * KiB)
  await retention.pass()
  t.match(
    troubles.first,
    /the disk is dead/,
    'a pass that asked nothing of the disk proves nothing',
  )
  disk.image = 'well'
  await retention.pass()
  t.equal(troubles.first, null)
})

void t.test('a disk that is well is not flushed for the sake of a pass', async (t) => {
  const { disk, retention } = primary()
  for (let pass = 0; pass < 3; pass += 1) await retention.pass()
  t.equal(disk.flushes, 0)
})
