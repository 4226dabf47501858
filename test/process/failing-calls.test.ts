/**
 * System calls that fail with EIO under a real pair: of the I/O threads of images, and of the thread pool that writes the
 * journal and the maps. Each ends in the policy that docs/replication.md names, an event and an alarm that stays; no process
 * ends, nothing acknowledged is lost, other groups do not notice, and the pair is whole again when the calls succeed.
 */

import path from 'node:path'
import t, { type Test } from 'tap'
import { FailingCalls } from '../support/failing-calls.ts'
import { protectionOf, stateOf } from '../support/replica-pair.ts'
import {
  attach,
  BLOCK,
  endsEqual,
  GROUPS,
  othersServe,
  reported,
  SIZE,
  untilState,
  ward,
  write,
  type Host,
  type Ward,
} from '../support/ward.ts'

const MiB = 1 << 20

/** How images are written: at once where that does not wait, by a thread, as holes. */
const WRITES = ['pwritev2', 'pwrite64', 'fallocate']

const journal = ({ state }: Host): string[] =>
  Array.from({ length: 60 }, (_, number) =>
    path.join(state, 'group-sick', `journal-${String(number + 1).padStart(8, '0')}.seg`),
  )

const image = (host: Host): string[] => [host.image('sick')]

const map = ({ state }: Host): string[] => [path.join(state, 'group-sick', 'changed-sick.map')]

/** Lets calls of a host on the files of the group `sick` fail. */
function fail(
  t: Test,
  host: Host,
  calls: readonly string[],
  files: (host: Host) => readonly string[],
): Promise<FailingCalls> {
  return FailingCalls.begin(t, host.server.child.pid, calls, files(host))
}

/** The failure is over, and an operator who comes later still sees that it was. */
async function alarmStays(t: Test, { primary }: Ward, { qmp }: Host): Promise<void> {
  let state
  do {
    await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
    state = await stateOf(qmp, 'sick')
  } while (state.error !== null)
  t.ok(
    state.alarms.some(({ text }) => /EIO/.test(text)),
    'the alarm stays',
  )
}

for (const [what, calls] of [
  ['flushes', ['fdatasync']],
  ['writes', ['pwrite64', 'pwritev']],
] as const)
  void t.test(`${what} of the journal that fail: no checkpoint, and it heals`, async (t) => {
    const pair = await ward(t, {})
    const { primary, secondary, guests } = pair
    await write(guests.sick, 1, 0, MiB)
    await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
    const failing = await fail(t, secondary, calls, journal)
    await write(guests.sick, 2, 0, MiB)
    await t.rejects(primary.qmp.execute('replication-checkpoint', { group: 'sick' }))
    await failing.hit()
    await reported(secondary.qmp, 'REPLICATION_ERROR', 'sick')
    t.match((await stateOf(secondary.qmp, 'sick')).error, /EIO/)
    t.not((await stateOf(primary.qmp, 'sick')).protection, 'protected')
    await write(guests.sick, 3, 2 * MiB, MiB)
    await othersServe(t, pair)
    await failing.end()
    await protectionOf(primary.qmp, 'sick', 'protected')
    await alarmStays(t, pair, secondary)
    await endsEqual(t, pair)
  })

void t.test('a journal that fails does not let a promote happen that it forgets', async (t) => {
  const { primary, secondary, guests } = await ward(t, {})
  await write(guests.sick, 1, 0, MiB)
  await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
  await write(guests.sick, 2, 0, MiB)
  primary.server.child.signal('SIGKILL')
  await untilState(secondary.qmp, ({ protection }) => protection !== 'protected')
  const failing = await fail(t, secondary, ['fdatasync'], journal)
  await t.rejects(secondary.qmp.execute('replication-promote', { group: 'sick' }), /EIO/)
  await failing.hit()
  t.equal((await stateOf(secondary.qmp, 'sick')).role, 'secondary')
  await failing.end()
  await secondary.qmp.execute('replication-promote', { group: 'sick' })
  const heir = await attach(secondary, 'sick')
  const found = Buffer.alloc(MiB)
  await heir.read(found, 0)
  t.ok(found.equals(Buffer.alloc(MiB, 1)), 'it is the last checkpoint')
  await heir.disconnect()
  t.equal((await secondary.server.stop()).code, 0)
})

/** Epochs whose image fails are safe in the journal: the pair is protected as before. */
async function imageFails(t: Test, pair: Ward, calls: readonly string[]): Promise<void> {
  const { primary, secondary, guests } = pair
  const failing = await fail(t, secondary, calls, image)
  await write(guests.sick, 1, 0, 2 * MiB)
  await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
  await failing.hit()
  await reported(secondary.qmp, 'REPLICATION_ERROR', 'sick')
  t.match((await stateOf(secondary.qmp, 'sick')).error, /EIO/)
  await write(guests.sick, 2, 0, MiB)
  await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
  t.equal((await stateOf(primary.qmp, 'sick')).protection, 'protected', 'the journal has it')
  await othersServe(t, pair)
  await failing.end()
}

void t.test("writes of a secondary's image that fail are tried again", async (t) => {
  const pair = await ward(t, {})
  await imageFails(t, pair, WRITES)
  await alarmStays(t, pair, pair.secondary)
  await endsEqual(t, pair)
})

void t.test(
  "a flush of a secondary's image that fails leaves the journal in charge until the next start",
  async (t) => {
    const pair = await ward(t, {})
    const { primary, secondary } = pair
    await imageFails(t, pair, ['fdatasync'])
    // The kernel tells of a lost write once: nobody believes a later flush of the same opening.
    t.match((await stateOf(secondary.qmp, 'sick')).error, /EIO/)
    await secondary.server.stop()
    const mended = await secondary.again({})
    for (const group of GROUPS) await protectionOf(primary.qmp, group, 'protected')
    t.equal((await stateOf(mended.qmp, 'sick')).error, null)
    await endsEqual(t, { ...pair, secondary: mended })
  },
)

void t.test("a write of a primary's image that fails, its guest hears, and it heals", async (t) => {
  const pair = await ward(t, {})
  const { primary, guests } = pair
  await write(guests.sick, 1, 0, MiB)
  const failing = await fail(t, primary, WRITES, image)
  await t.rejects(guests.sick.write(Buffer.alloc(BLOCK, 2), 0), { code: 'IO' })
  await failing.hit()
  await reported(primary.qmp, 'REPLICATION_ERROR', 'sick')
  t.match((await stateOf(primary.qmp, 'sick')).error, /EIO/)
  await othersServe(t, pair)
  await failing.end()
  await guests.sick.write(Buffer.alloc(BLOCK, 3), 0)
  await protectionOf(primary.qmp, 'sick', 'protected')
  await alarmStays(t, pair, primary)
  await endsEqual(t, pair)
})

void t.test("a flush of a primary's image that fails, its guest hears until it ends", async (t) => {
  const pair = await ward(t, {})
  const { primary, guests } = pair
  await write(guests.sick, 1, 0, MiB)
  const failing = await fail(t, primary, ['fdatasync'], image)
  await t.rejects(guests.sick.flush(), { code: 'IO' })
  await failing.hit()
  await othersServe(t, pair)
  await failing.end()
  await t.rejects(guests.sick.flush(), { code: 'IO' }, 'what was lost stays lost')
  await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
  for (const group of GROUPS) await guests[group].disconnect()
  await primary.server.stop()
  const mended = await primary.again({})
  const again = { sick: await attach(mended, 'sick'), well: await attach(mended, 'well') }
  await again.sick.flush()
  for (const group of GROUPS) await protectionOf(mended.qmp, group, 'protected')
  await endsEqual(t, { ...pair, primary: mended, guests: again })
})

void t.test(
  "a primary's map that cannot be written: writes to new regions fail, no other",
  async (t) => {
    // A copy would have marked every region.
    const pair = await ward(t, { settings: ['initial=identical'] })
    const { primary, guests } = pair
    await write(guests.sick, 1, 0, MiB)
    const last = SIZE - BLOCK
    for (const calls of [['fdatasync'], ['pwrite64', 'pwritev']]) {
      const failing = await fail(t, primary, calls, map)
      await t.rejects(guests.sick.write(Buffer.alloc(BLOCK, 2), last), { code: 'IO' })
      await failing.hit()
      await reported(primary.qmp, 'REPLICATION_ERROR', 'sick')
      await write(guests.sick, 3, 0, MiB)
      await othersServe(t, pair)
      await failing.end()
    }
    await guests.sick.write(Buffer.alloc(BLOCK, 4), last)
    await protectionOf(primary.qmp, 'sick', 'protected')
    await alarmStays(t, pair, primary)
    await endsEqual(t, pair)
  },
)
