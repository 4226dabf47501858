/**
 * Replicas of which a disk grows and another one leaves, and that lose their power after any step of that, and again after any
 * step of their next start: the others have one checkpoint, or miss no change; what left is as it was when it did; what
 * has grown stays so.
 */

import t from 'tap'

import { SECTOR } from '../../../core/units.ts'
import { frame } from '../../../replication/machine/frame.ts'
import { crashEverywhere } from './every-crash.ts'
import { turn } from './recorded-files.ts'
import { RecordedStorage } from './recorded-storage.ts'
import {
  DISKS,
  firstContents,
  leadOn,
  PlayedSecondary,
  SECTORS,
  startOn,
  tagsOf,
  type StoredReplica,
} from './stored-replica.ts'

/** With spilled epochs, or, with CRASH_EPOCHS, also with epochs in memory. */
const STORIES = process.env['CRASH_EPOCHS'] === undefined ? [true] : [false, true]

const GROWN = SECTORS + 7
/** Longer than a primary waits before it looks for regions that are clean. */
const TIDY_MS = 31_000
/** What takes longer has failed, and is tried again for ever. */
const MOST_TURNS = 300

/** The step from which on each is known to have happened. */
interface Change {
  readonly left: number
  readonly grown: number
}

interface Recording {
  readonly storage: RecordedStorage
  /** The step from which on the disks change. */
  readonly begun: number
  readonly change: Change
  /** By checkpoint: what each disk had, and the steps at which it was announced and reported as done. */
  readonly contents: readonly number[][][]
  readonly announced: readonly number[]
  readonly reported: readonly number[]
}

async function until(what: string, so: () => boolean): Promise<void> {
  for (let turns = 0; !so(); turns += 1) {
    if (turns === MOST_TURNS) throw new Error(`${what}: it never happens`)
    await turn()
  }
}

/** Resolves to the steps that were made when `work` has ended. */
async function stepsOf(
  storage: RecordedStorage,
  what: string,
  work: Promise<unknown>,
): Promise<number> {
  let steps: number | undefined
  void work.then(() => (steps = storage.steps))
  await until(what, () => steps !== undefined)
  return steps ?? 0
}

async function idle({ group }: StoredReplica, storage: RecordedStorage): Promise<void> {
  for (const { layers } of group.secondary.disks) await layers.idle()
  await storage.settled()
}

/** A disk grows in the middle of an epoch; another one leaves while an epoch is being committed, and has a slow image. */
async function recordSecondary(spills: boolean): Promise<Recording> {
  const storage = RecordedStorage.withImages(firstContents())
  const replica = await startOn(storage, 'secondary', undefined, { spills, slowness: 12 })
  const reported: number[] = [0]
  const announced: number[] = [0]
  const primary = leadOn(replica, ({ type, position }) => {
    if (type === 'done') reported[position] = storage.steps
  })
  const present = firstContents().map(tagsOf)
  const contents = [structuredClone(present)]
  const write = (disk: number, ...sectors: readonly number[]): void => {
    for (const sector of sectors) {
      const tag = 10 * contents.length + disk
      present[disk]![sector] = tag
      const payload = Buffer.alloc(SECTOR, tag)
      primary.tell(frame('write', { disk, position: sector * SECTOR, payload }))
    }
  }
  const mark = (): number => {
    contents.push(structuredClone(present))
    const checkpoint = contents.length - 1
    announced[checkpoint] = storage.steps
    primary.tell(frame('checkpoint', { position: checkpoint }))
    return checkpoint
  }
  const isDone = (checkpoint: number) => (): boolean => reported[checkpoint] !== undefined
  write(0, 1, 2)
  write(1, 3)
  await until('the first checkpoint', isDone(mark()))
  await idle(replica, storage)
  const begun = storage.steps
  write(0, 2, 5, SECTORS - 1)
  const [first] = replica.disks
  const grown = await stepsOf(storage, 'a disk grows', first!.resize(GROWN * SECTOR))
  write(1, 5)
  await until('the second checkpoint', isDone(mark()))
  await idle(replica, storage)
  write(0, 3)
  write(1, 0, 4, 8, 10)
  const last = mark()
  const left = await stepsOf(storage, 'a disk leaves', replica.group.dismiss('1'))
  await until('the third checkpoint', isDone(last))
  write(0, 7)
  await until('the fourth checkpoint', isDone(mark()))
  await idle(replica, storage)
  return { storage, begun, change: { left, grown }, contents, announced, reported }
}

function disksAt(step: number, { left }: Change): string[] {
  return step >= left ? ['0'] : ['0', '1']
}

function lastBefore(moments: readonly number[], step: number): number {
  return moments.reduce((last, moment, checkpoint) => (moment <= step ? checkpoint : last), 0)
}

/** What a guest would read of a disk that is served, and what the image holds. */
async function seen(
  replica: StoredReplica,
  found: RecordedStorage,
  disk: number,
): Promise<Record<'read' | 'image', number[]>> {
  const { layers } = replica.group.secondary.disks[disk]!
  const bytes = Buffer.alloc(layers.size)
  await layers.read(bytes, 0)
  await idle(replica, found)
  return { read: tagsOf(bytes), image: tagsOf(found.image(disk).subarray(0, layers.size)) }
}

for (const spills of STORIES)
  void t.test(
    `a secondary has one checkpoint of the disks that are left, whatever crash comes${spills ? '' : ', of epochs in memory'}`,
    async (t) => {
      const { storage, begun, change, contents, announced, reported } =
        await recordSecondary(spills)
      const { starts, wrong } = await crashEverywhere<number>(
        storage,
        async (found, { step, first }, wrong) => {
          const disks = disksAt(step, change)
          const replica = await startOn(found, 'secondary', undefined, { disks })
          const { checkpoint, disks: statuses } = replica.group.status()
          const [least, most] = [lastBefore(reported, step), lastBefore(announced, step)]
          if (checkpoint < least || checkpoint > most)
            wrong(`recovered ${checkpoint}, reported ${least}, announced ${most}`)
          if (first !== undefined && checkpoint !== first)
            wrong(`recovered ${checkpoint} after ${first}`)
          for (const [disk, { size, standing }] of statuses.entries()) {
            if (disk === 0 && step >= change.grown && size !== GROWN * SECTOR)
              wrong(`the disk that has grown has ${size} bytes`)
            // One that left, and was not reported to have, is copied anew.
            if (standing !== 'whole') continue
            const expected = [...contents[checkpoint]![disk]!]
            while (expected.length < size / SECTOR) expected.push(0)
            for (const [where, tags] of Object.entries(await seen(replica, found, disk)))
              if (String(tags) !== String(expected))
                wrong(`${where} of disk ${disk} is ${String(tags)}, not ${checkpoint}`)
          }
          if (disks.length === DISKS) return checkpoint
          // The third epoch was being committed when it left.
          if (String(tagsOf(found.image(1))) !== String(contents[3]![1]))
            wrong(`what left is ${String(tagsOf(found.image(1)))}`)
          if ((await found.maps()).includes('1')) wrong('what left has a map')
          return checkpoint
        },
        begun,
      )
      t.same(wrong, [])
      t.comment(`${storage.steps} steps, ${starts} recoveries`)
      t.ok(starts > 1000, 'there were many ways to crash')
    },
  )

/** What the secondary's last checkpoint holds, and a primary that goes on alone: a disk leaves it, another one grows. */
async function recordPrimary(): Promise<
  Pick<Recording, 'storage' | 'begun' | 'change' | 'contents'>
> {
  const storage = RecordedStorage.withImages(firstContents())
  const secondary = new PlayedSecondary()
  const replica = await startOn(storage, 'primary', secondary.dial)
  const { group, clock, disks } = replica
  while (group.status().protection !== 'protected') await clock.advance(10)
  const write = async (disk: number, sector: number, tag: number): Promise<void> => {
    await disks[disk]!.write(Buffer.alloc(SECTOR, tag), sector * SECTOR, 0)
  }
  await write(0, 2, 1)
  await write(1, 3, 2)
  await group.checkpoint(1e9)
  const contents = [Array.from({ length: DISKS }, (_, disk) => tagsOf(storage.image(disk)))]
  for (let times = 0; times < 3; times += 1) await clock.advance(TIDY_MS)
  await storage.settled()
  secondary.lose()
  const begun = storage.steps
  await write(0, 4, 3)
  await write(1, 4, 4)
  const left = await stepsOf(storage, 'a disk leaves', group.dismiss('1'))
  const grown = await stepsOf(storage, 'a disk grows', disks[0]!.resize(GROWN * SECTOR))
  await write(0, GROWN - 1, 5)
  await write(0, 9, 6)
  await storage.settled()
  return { storage, begun, change: { left, grown }, contents }
}

void t.test(
  'a primary misses no change of the disks that are left, whatever crash comes',
  async (t) => {
    const { storage, begun, change, contents } = await recordPrimary()
    const [held] = contents
    const { starts, wrong } = await crashEverywhere(
      storage,
      async (found, { step }, wrong) => {
        const disks = disksAt(step, change)
        const { group } = await startOn(found, 'primary', undefined, { disks })
        await found.settled()
        const { machine } = group.primary!
        const { checkpoint, disks: statuses } = group.status()
        if (step >= change.grown && statuses[0]?.size !== GROWN * SECTOR)
          wrong(`the disk that has grown has ${String(statuses[0]?.size)} bytes`)
        if (step >= change.left && (await found.maps()).includes('1')) wrong('what left has a map')
        if (checkpoint === 0) return
        for (const [disk, { size, standing }] of statuses.entries()) {
          // All of it is sent.
          if (standing === 'new') continue
          const tags = tagsOf(found.image(disk).subarray(0, size))
          for (const [sector, tag] of tags.entries()) {
            if (tag === held![disk]![sector]) continue
            const run = machine.nextDirty(disk, sector * SECTOR, SECTOR, machine.committed)
            if (run === undefined || run.at > sector * SECTOR)
              wrong(`sector ${sector} of disk ${disk} differs and is not dirty`)
          }
        }
      },
      begun,
    )
    t.same(wrong, [])
    t.comment(`${storage.steps} steps, ${starts} starts`)
    t.ok(starts > 1000, 'there were many ways to crash')
  },
)
