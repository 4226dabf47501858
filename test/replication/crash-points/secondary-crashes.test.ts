/**
 * A secondary that loses its power after any step of its work, and again after any step of its recovery: it always comes
 * back to one checkpoint, whole, and to none that is older than what it has reported (invariants 1, 2, 4).
 *
 * CRASH_EPOCHS is the number of its epochs.
 */

import t from 'tap'

import { seededRandom } from '../../../core/seeded-random.ts'
import { SECTOR } from '../../../core/units.ts'
import { frame } from '../../../replication/machine/frame.ts'
import { crashEverywhere } from './every-crash.ts'
import { turn } from './recorded-files.ts'
import { RecordedStorage } from './recorded-storage.ts'
import {
  contentOf,
  DISKS,
  firstContents,
  leadOn,
  SECTORS,
  startOn,
  tagsOf,
  type StoredReplica,
} from './stored-replica.ts'

const EPOCHS = Number(process.env['CRASH_EPOCHS'] ?? 2)

interface Moment {
  readonly step: number
  readonly checkpoint: number
}

interface Recording {
  readonly storage: RecordedStorage
  /** By checkpoint, what the primary had. */
  readonly contents: readonly number[][][]
  /** When each checkpoint was announced, and reported as done. */
  readonly announced: readonly Moment[]
  readonly reported: readonly Moment[]
}

/** A few epochs of writes and zeroes on two disks, and one that has no end. */
async function record(epochs: number, spills: boolean): Promise<Recording> {
  const storage = RecordedStorage.withImages(firstContents())
  const replica = await startOn(storage, 'secondary', undefined, { spills })
  const announced: Moment[] = []
  const reported: Moment[] = []
  const primary = leadOn(replica, ({ type, position }) => {
    if (type === 'done') reported.push({ step: storage.steps, checkpoint: position })
  })
  const present = firstContents().map(tagsOf)
  const contents = [structuredClone(present)]
  const random = seededRandom(7)
  for (let checkpoint = 1; checkpoint <= epochs + 1; checkpoint += 1) {
    for (let disk = 0; disk < DISKS; disk += 1) {
      const first = Math.floor(random() * (SECTORS - 3))
      const isZero = random() < 0.3
      const tag = isZero ? 0 : 10 * checkpoint + disk
      present[disk]!.fill(tag, first, first + 3)
      const position = first * SECTOR
      if (isZero) primary.tell(frame('zero', { disk, position, extent: 3 * SECTOR, flags: 1 }))
      else primary.tell(frame('write', { disk, position, payload: Buffer.alloc(3 * SECTOR, tag) }))
      await turn()
    }
    if (checkpoint > epochs) break
    contents.push(structuredClone(present))
    announced.push({ step: storage.steps, checkpoint })
    primary.tell(frame('checkpoint', { position: checkpoint }))
    // Every second epoch has reached the images before the next one ends.
    if (checkpoint % 2 === 0) await idle(replica, storage)
    else while (reported.length < checkpoint) await turn()
  }
  await idle(replica, storage)
  return { storage, contents, announced, reported }
}

async function idle({ group }: StoredReplica, storage: RecordedStorage): Promise<void> {
  for (const { layers } of group.secondary.disks) await layers.idle()
  // What the journal has still to write and to remove.
  await storage.settled()
}

function lastBefore(moments: readonly Moment[], step: number): number {
  return moments.reduce((last, moment) => (moment.step <= step ? moment.checkpoint : last), 0)
}

for (const spills of [false, true])
  void t.test(
    `a crash after any step, and after any step of the recovery, leaves one checkpoint${spills ? ' of spilled epochs' : ''}`,
    async (t) => {
      const { storage, contents, announced, reported } = await record(EPOCHS, spills)
      t.equal(reported.length, EPOCHS)
      const { starts, wrong } = await crashEverywhere<number>(
        storage,
        async (found, { step, first }, wrong) => {
          const replica = await startOn(found, 'secondary')
          const { checkpoint } = replica.group.status()
          const expected = JSON.stringify(contents[checkpoint])
          const seen = JSON.stringify(await contentOf(replica))
          if (seen !== expected) wrong(`${checkpoint} is ${seen}`)
          await idle(replica, found)
          const images = Array.from({ length: DISKS }, (_, disk) => tagsOf(found.image(disk)))
          if (JSON.stringify(images) !== expected)
            wrong(`the images are ${JSON.stringify(images)}, not ${checkpoint}`)
          const [least, most] = [lastBefore(reported, step), lastBefore(announced, step)]
          if (checkpoint < least || checkpoint > most)
            wrong(`recovered ${checkpoint}, reported ${least}, announced ${most}`)
          if (first !== undefined && checkpoint !== first)
            wrong(`recovered ${checkpoint} after ${first}`)
          return checkpoint
        },
      )
      t.same(wrong, [])
      t.comment(`${storage.steps} steps, ${starts} recoveries`)
      t.ok(starts > 1000 * EPOCHS, 'there were many ways to crash')
    },
  )
