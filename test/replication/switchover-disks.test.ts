/** A planned exchange of the roles, and other changes of them, while disks grow and are copied. */

import t, { type Test } from 'tap'

import { MiB } from '../../core/units.ts'
import { NODE_TIMERS } from '../../replication/node-timers.ts'
import { BLOCK, Image, SIZE, start, type Pair, type Side } from './disk-pair.ts'

/** The secondary of these pairs cannot connect: in the end it waits in vain for the old primary. */
const IN_VAIN = { code: 'TIMEOUT' }
const TIMEOUT_MS = 2000
/** How long a command waits for news of the other side's disk. */
const PATIENCE_MS = 1000

/** Resolves when a side has taken over, or says why not. */
const decided = (side: Side): Promise<void> =>
  side.until(({ role, reason }) => role === 'active' || /, but this side /.test(reason ?? ''))

/** Has the next flush of an image wait. @returns when it has begun, and what lets it go on */
function holdFlush(image: Image | undefined): { begun: Promise<void>; release: () => void } {
  let release = (): void => undefined
  const begun = new Promise<void>((resolve) => {
    const released = new Promise<void>((go) => {
      release = go
    })
    const flush = (): Promise<void> => {
      resolve()
      return released
    }
    Object.assign(image ?? {}, { flush })
  })
  return { begun, release: () => release() }
}

/** Disk "b" is larger than the secondary's memory: its copy waits for checkpoints. */
const startLarge = async (t: Test): Promise<Pair> => {
  const pair = await start(t, { memory: 8 * MiB })
  await pair.secondary.add('b', new Image(16 * MiB))
  await pair.primary.add('b', new Image(16 * MiB))
  await copied(pair)
  return pair
}

async function copied({ primary }: Pair): Promise<void> {
  while (primary.standing('b') !== 'whole') await primary.group.checkpoint(undefined)
}

void t.test(
  'a role is not exchanged while the other side gets a copy of a disk that it alone had removed',
  async (t) => {
    const pair = await startLarge(t)
    const { primary, secondary } = pair
    await primary.write('b', 0, 5)
    await primary.group.checkpoint(undefined)
    primary.group.setReplicating(false)
    await secondary.remove('b')
    await secondary.add('b', new Image(16 * MiB))
    primary.group.setReplicating(true)
    await primary.untilProtected()
    t.equal(primary.standing('b'), 'new', 'no checkpoint of the other side has it')
    await t.rejects(primary.group.switchover(TIMEOUT_MS), {
      code: 'NOT_PERMITTED',
      message: /disk "b" is not on the other side yet/,
    })
    t.equal(primary.group.status().role, 'primary')
    await copied(pair)
    const ended = t.rejects(primary.group.switchover(TIMEOUT_MS), IN_VAIN)
    await decided(secondary)
    t.equal(secondary.group.status().role, 'active')
    t.equal(await secondary.read('b', 0), 5)
    await ended
  },
)

void t.test('no copy begins between the last checkpoint and the handover', async (t) => {
  const { primary, secondary } = await startLarge(t)
  const { begun, release } = holdFlush(primary.images.get('a'))
  const ended = t.rejects(primary.group.switchover(TIMEOUT_MS), IN_VAIN)
  await begun
  await secondary.remove('b')
  await secondary.add('b', new Image(16 * MiB))
  await primary.until(() => primary.group.primary?.machine.carries(1) === true)
  // What is sent before them has arrived when they are done.
  for (let times = 0; times < 2; times += 1) await primary.group.checkpoint(undefined)
  release()
  await decided(secondary)
  t.equal(secondary.group.status().role, 'active', secondary.group.status().reason ?? '')
  await ended
})

void t.test('an exchange waits for a disk that grows, and for what it has gained', async (t) => {
  const { primary, secondary } = await start(t)
  const size = 2 * SIZE
  await secondary.disk('a').resize(size)
  secondary.images.get('a')?.write(Buffer.alloc(SIZE, 0xee), SIZE)
  await primary.until(() => primary.group.primary?.machine.sizeThere(0) === size)
  const { begun, release } = holdFlush(primary.images.get('a'))
  const grown = primary.disk('a').resize(size)
  await begun
  const ended = t.rejects(primary.group.switchover(TIMEOUT_MS), IN_VAIN)
  release()
  await grown
  t.equal(primary.disk('a').geometry.size, size)
  await decided(secondary)
  t.equal(secondary.group.status().role, 'active', secondary.group.status().reason ?? '')
  t.equal(await secondary.read('a', size - BLOCK), 0, 'as whoever used the old primary saw it')
  await ended
})

void t.test('an exchange waits no longer for a disk that grows than it was told to', async (t) => {
  const { primary, secondary } = await start(t)
  await secondary.disk('a').resize(2 * SIZE)
  await primary.until(() => primary.group.primary?.machine.sizeThere(0) === 2 * SIZE)
  const { begun, release } = holdFlush(primary.images.get('a'))
  const grown = primary.disk('a').resize(2 * SIZE)
  await begun
  await t.rejects(primary.group.switchover(20), { code: 'TIMEOUT', message: /is growing/ })
  t.equal(primary.group.status().role, 'primary')
  t.equal(primary.group.status().protection, 'protected')
  release()
  await grown
})

void t.test(
  'a disk does not outgrow the other side where the role was given up and taken back meanwhile',
  async (t) => {
    const waits: (() => void)[] = []
    const timers = {
      ...NODE_TIMERS,
      after: (ms: number, call: () => void): (() => void) => {
        if (ms !== PATIENCE_MS) return NODE_TIMERS.after(ms, call)
        waits.push(call)
        return () => undefined
      },
    }
    const { primary } = await start(t, {}, ['a'], { timers })
    const refused = t.rejects(primary.disk('a').resize(2 * SIZE), {
      code: 'NOT_PERMITTED',
      message: /1048576 bytes: grow that one first/,
    })
    await primary.until(() => waits.length === 1)
    await primary.group.demote(true)
    await primary.group.promote(true)
    await primary.untilProtected()
    waits[0]?.()
    // Whoever leads now has to be asked, who waits as long.
    await primary.until(() => waits.length === 2 || primary.disk('a').geometry.size !== SIZE)
    waits[1]?.()
    await refused
    t.equal(primary.disk('a').geometry.size, SIZE)
    t.equal(primary.group.status().protection, 'protected')
  },
)
