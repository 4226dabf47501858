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
import { FATES, RecordedStorage, turn } from './recorded-storage.ts'
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
  const storage = RecordedStorage.withImages(firstContents())
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
    held.push({ step: storage.steps.length, contents: structuredClone(present) })
  }
  await untilProtected(replica)
  await write()
  await checkpoint()
  // Twice: what was written lately is spared the first time.
  for (let times = 0; times < 3; times += 1) await replica.clock.advance(TIDY_MS)
  for (let turns = 0; turns < 10; turns += 1) await turn()
  await write()
  await checkpoint()
  await write()
  secondary.lose()
  await write()
  for (let turns = 0; turns < 10; turns += 1) await turn()
  return { storage, held }
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
    tagsOf(storage.bytesOf(`image ${disk}`)).flatMap((tag, sector) => {
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
    const wrong: string[] = []
    let starts = 0
    let clean = 0
    const start = async (found: RecordedStorage, step: number, what: string): Promise<void> => {
      starts += 1
      const replica = await startOn(found, 'primary')
      for (let turns = 0; turns < 6; turns += 1) await turn()
      const { contents } = held.filter((moment) => moment.step <= step).at(-1)!
      const missed = uncovered(replica, found, contents)
      if (missed.length > 0) wrong.push(`${what}: ${missed.join(', ')} differ and are not dirty`)
      if (replica.group.primary!.diskStatus().every(({ dirtyBytes }) => dirtyBytes === 0))
        clean += 1
    }
    for (let step = 0; step <= storage.steps.length; step += 1)
      for (const fate of FATES) {
        const what = `step ${step} of ${storage.steps.length}, ${fate}`
        const found = storage.afterCrash(step, fate, step)
        await start(found, step, what)
        for (let again = 0; again <= found.steps.length; again += 1)
          for (const second of FATES)
            await start(
              found.afterCrash(again, second, again),
              step,
              `${what}; step ${again} of its start, ${second}`,
            )
      }
    t.same(wrong.slice(0, 5), [])
    t.comment(`${storage.steps.length} steps, ${starts} starts`)
    t.ok(clean > 0, 'what is clean is known to be, at times')
    t.ok(starts > 500, 'there were many ways to crash')
  },
)
