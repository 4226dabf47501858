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
import { FATES, RecordedStorage, turn } from './recorded-storage.ts'
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
async function record(epochs: number): Promise<Recording> {
  const storage = RecordedStorage.withImages(firstContents())
  const replica = await startOn(storage, 'secondary')
  const announced: Moment[] = []
  const reported: Moment[] = []
  const primary = leadOn(replica, ({ type, position }) => {
    if (type === 'done') reported.push({ step: storage.steps.length, checkpoint: position })
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
    announced.push({ step: storage.steps.length, checkpoint })
    primary.tell(frame('checkpoint', { position: checkpoint }))
    // Every second epoch has reached the images before the next one ends.
    if (checkpoint % 2 === 0) await idle(replica)
    else while (reported.length < checkpoint) await turn()
  }
  await idle(replica)
  return { storage, contents, announced, reported }
}

async function idle({ group }: StoredReplica): Promise<void> {
  for (const { layers } of group.secondary.disks) await layers.idle()
  // What the journal has still to write and to remove.
  for (let turns = 0; turns < 12; turns += 1) await turn()
}

function lastBefore(moments: readonly Moment[], step: number): number {
  return moments.reduce((last, moment) => (moment.step <= step ? moment.checkpoint : last), 0)
}

void t.test(
  'a crash after any step, and after any step of the recovery, leaves one checkpoint',
  async (t) => {
    const { storage, contents, announced, reported } = await record(EPOCHS)
    t.equal(reported.length, EPOCHS)
    let recoveries = 0
    const wrong: string[] = []
    const recover = async (found: RecordedStorage, what: string): Promise<number> => {
      recoveries += 1
      const replica = await startOn(found, 'secondary')
      const { checkpoint } = replica.group.status()
      const seen = JSON.stringify(await contentOf(replica))
      if (seen !== JSON.stringify(contents[checkpoint]))
        wrong.push(`${what}: ${checkpoint} is ${seen}`)
      await idle(replica)
      const after = JSON.stringify(
        Array.from({ length: DISKS }, (_, disk) => tagsOf(found.bytesOf(`image ${disk}`))),
      )
      if (after !== JSON.stringify(contents[checkpoint]))
        wrong.push(`${what}: the images are ${after}`)
      return checkpoint
    }
    for (let step = 0; step <= storage.steps.length; step += 1) {
      const [least, most] = [lastBefore(reported, step), lastBefore(announced, step)]
      for (const fate of FATES) {
        const what = `step ${step} of ${storage.steps.length}, ${fate}`
        const found = storage.afterCrash(step, fate, step)
        const checkpoint = await recover(found, what)
        if (checkpoint < least || checkpoint > most)
          wrong.push(`${what}: recovered ${checkpoint}, reported ${least}, announced ${most}`)
        for (let again = 0; again <= found.steps.length; again += 1)
          for (const second of FATES) {
            const twice = `${what}; step ${again} of its recovery, ${second}`
            const last = await recover(found.afterCrash(again, second, again), twice)
            if (last !== checkpoint) wrong.push(`${twice}: recovered ${last} after ${checkpoint}`)
          }
      }
    }
    t.same(wrong.slice(0, 5), [])
    t.comment(`${storage.steps.length} steps, ${recoveries} recoveries`)
    t.ok(recoveries > 100 * EPOCHS, 'there were many ways to crash')
  },
)
