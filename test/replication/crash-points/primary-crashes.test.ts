/**
 * A primary that loses its power after any step of its work, and again after any step of its next start: whatever in its
 * images may differ from the secondary's last checkpoint is dirty when it is back (invariants 15 and 16), and no more
 * than its marked regions.
 *
 * CRASH_WRITES is the number of its guest's writes in each part of the story.
 */

import t from 'tap'

import { seededRandom } from '../../../core/seeded-random.ts'
import { SECTOR } from '../../../core/units.ts'
import { crashEverywhere } from './every-crash.ts'
import { RecordedStorage } from './recorded-storage.ts'
import {
  DISKS,
  firstContents,
  PlayedSecondary,
  SECTORS,
  startOn,
  tagsOf,
  type StoredReplica,
} from './stored-replica.ts'

const WRITES = Number(process.env['CRASH_WRITES'] ?? 1)

/** Longer than a primary waits before it looks for regions that are clean. */
const TIDY_MS = 31_000

interface Recording {
  readonly storage: RecordedStorage
  /** What the secondary's last checkpoint holds, from each step on. */
  readonly held: readonly { readonly step: number; readonly contents: number[][] }[]
}

/** Writes with a secondary, a checkpoint, time to tidy up, writes without it, and with it again. */
async function record(writes: number): Promise<Recording> {
  const storage = await afterAnotherGroup()
  const secondary = new PlayedSecondary()
  const replica = await startOn(storage, 'primary', secondary.dial)
  const random = seededRandom(3)
  const present = firstContents().map(tagsOf)
  const held = [{ step: 0, contents: structuredClone(present) }]
  let tag = 0
  const write = async (): Promise<void> => {
    for (let count = 0; count < writes; count += 1) {
      const disk = count % DISKS
      const first = Math.floor(random() * (SECTORS - 2))
      tag += 1
      present[disk]!.fill(tag, first, first + 2)
      await replica.disks[disk]!.write(Buffer.alloc(2 * SECTOR, tag), first * SECTOR, 0)
    }
  }
  const checkpoint = async (): Promise<void> => {
    await replica.group.checkpoint(1e9)
    held.push({ step: storage.steps, contents: structuredClone(present) })
  }
  await untilProtected(replica)
  await write()
  await checkpoint()
  // Twice: what was written lately is spared the first time.
  for (let times = 0; times < 3; times += 1) await replica.clock.advance(TIDY_MS)
  await storage.settled()
  await write()
  await checkpoint()
  await write()
  secondary.lose()
  await write()
  await storage.settled()
  return { storage, held }
}

/** Where a group of the same name has left maps, in which nothing is marked, and no journal. */
async function afterAnotherGroup(): Promise<RecordedStorage> {
  const storage = RecordedStorage.withImages(firstContents())
  await storage.openSegments()
  for (let disk = 0; disk < DISKS; disk += 1)
    await storage.openRegions(String(disk), SECTORS * SECTOR, true)
  return storage.afterCrash(storage.steps, 'kept', 0)
}

async function untilProtected({ group, clock }: StoredReplica): Promise<void> {
  while (group.status().protection !== 'protected') await clock.advance(10)
}

/** Sectors that the secondary has otherwise and that are not dirty. */
function uncovered(
  { group }: StoredReplica,
  storage: RecordedStorage,
  contents: readonly number[][],
): string[] {
  const machine = group.primary!.machine
  return contents.flatMap((held, disk) =>
    tagsOf(storage.image(disk)).flatMap((tag, sector) => {
      if (tag === held[sector]) return []
      const run = machine.nextDirty(disk, sector * SECTOR, SECTOR, machine.committed)
      return run !== undefined && run.at <= sector * SECTOR ? [] : [`${disk}/${sector}`]
    }),
  )
}

void t.test(
  'a crash after any step, and after any step of the next start, loses no change',
  async (t) => {
    const { storage, held } = await record(WRITES)
    let clean = 0
    const { starts, wrong } = await crashEverywhere(storage, async (found, { step }, wrong) => {
      const replica = await startOn(found, 'primary')
      await found.settled()
      const { contents } = held.filter((moment) => moment.step <= step).at(-1)!
      const missed = uncovered(replica, found, contents)
      if (missed.length > 0) wrong(`${missed.join(', ')} differ and are not dirty`)
      if (replica.group.primary!.diskStatus().every(({ dirtyBytes }) => dirtyBytes === 0))
        clean += 1
    })
    t.same(wrong, [])
    t.comment(`${storage.steps} steps, ${starts} starts`)
    t.ok(clean > 0, 'what is clean is known to be, at times')
    t.ok(starts > 5000, 'there were many ways to crash')
  },
)

void t.test(
  'a map that was lost is made anew as one of everything, whatever crash comes',
  async (t) => {
    const storage = await (await record(WRITES)).storage.withoutMaps()
    await startOn(storage, 'primary')
    await storage.settled()
    const { starts, wrong } = await crashEverywhere(storage, async (found, _, wrong) => {
      const { group } = await startOn(found, 'primary')
      await found.settled()
      for (const { name, size, dirtyBytes } of group.primary!.diskStatus())
        if (dirtyBytes !== size) wrong(`${dirtyBytes} of ${size} bytes of ${name} are dirty`)
    })
    t.same(wrong, [])
    t.comment(`${storage.steps} steps, ${starts} starts`)
    t.ok(starts > 1000, 'there were many ways to crash')
  },
)
