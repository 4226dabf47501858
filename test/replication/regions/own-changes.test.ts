/** What is wrong with the maps of a secondary's own changes is over when they can be written again. */

import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { SILENT } from '../../../core/logger.ts'
import { KiB, MiB } from '../../../core/units.ts'
import { OwnChanges } from '../../../replication/regions/own-changes.ts'
import { RegionMap } from '../../../replication/regions/region-map.ts'
import { memoryRegions } from '../../../replication/regions/region-store.ts'
import { Troubles } from '../../../replication/troubles.ts'

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

void t.test('a map that cannot be written is told until every one can', async (t) => {
  const troubles = new Troubles('vm', {
    logger: SILENT,
    onEvent: () => undefined,
  })
  const store = memoryRegions(MiB, 64 * KiB)
  const dead = { ...store }
  const maps = [dead, store].map((each) => new RegionMap(each, MiB))
  for (const map of maps) await map.mark(0, MiB)
  const changes = new OwnChanges(maps, troubles)
  dead.save = () => Promise.reject(new Fault('IO', 'the map is on a dead disk'))
  changes.forget([MiB, MiB])
  await settled()
  t.match(troubles.first, /the map is on a dead disk/, 'also where another map can be written')
  changes.forget([MiB, MiB])
  await settled()
  t.match(troubles.first, /the map is on a dead disk/, 'for as long as it cannot')
  dead.save = (bitmap, sectors) => store.save(bitmap, sectors)
  changes.forget([MiB, MiB])
  await settled()
  t.equal(troubles.first, null)
})
