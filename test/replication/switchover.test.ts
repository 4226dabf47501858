/** A planned exchange of the roles when something comes between its last checkpoint and the handover. */

import t from 'tap'

import { KiB } from '../../core/units.ts'
import type { PrimarySide } from '../../replication/primary-side.ts'
import { leaveRole } from '../../replication/switchover.ts'
import type { Frame } from '../../replication/machine/frame.ts'
import { startPair, type Pair } from './comparison/one-process-pair.ts'

const LEAVING = { code: 'NOT_PERMITTED', message: /this side is leaving its role/ }
/** The secondary of these pairs cannot connect: in the end it waits in vain for the old primary. */
const IN_VAIN = { code: 'TIMEOUT' }
const TIMEOUT_MS = 2000

/** Calls this just before the primary hears that the last checkpoint is committed. */
function beforeDone(pair: Pair, call: () => void): void {
  pair.back = (frame: Frame) => {
    if (frame.type === 'done') call()
    return frame
  }
}

const takenOver = ({ secondary }: Pair): Promise<unknown> =>
  secondary.next(({ event }) => event === 'REPLICATION_ROLE')

void t.test(
  'no copy, no comparison and no end of replication comes between the last checkpoint and the handover',
  async (t) => {
    const pair = await startPair()
    const { group } = pair.primary
    let copy: Promise<unknown> | undefined
    beforeDone(pair, () => {
      copy = t.rejects(group.resync(false), LEAVING)
      t.throws(() => group.verify('repair'), LEAVING)
      t.doesNotThrow(() => group.verify('cancel'))
      t.throws(() => group.setReplicating(false), LEAVING)
    })
    const exchanged = takenOver(pair)
    const ended = t.rejects(group.switchover(TIMEOUT_MS), IN_VAIN)
    await exchanged
    t.ok(copy, 'it was asked for in time')
    await copy
    t.equal(pair.secondary.group.status().role, 'active')
    t.equal(group.status().role, 'secondary')
    await ended
    await pair.close()
  },
)

void t.test('a copy that is about to begin gives way to the exchange', async (t) => {
  const pair = await startPair()
  const exchanged = takenOver(pair)
  const copy = t.rejects(pair.primary.group.resync(false), LEAVING)
  const ended = t.rejects(pair.primary.group.switchover(TIMEOUT_MS), IN_VAIN)
  await t.rejects(pair.primary.group.switchover(TIMEOUT_MS), LEAVING, 'as does another one')
  await exchanged
  await Promise.all([copy, ended])
  await pair.close()
})

void t.test(
  'a repair under way ends before the exchange, and the role is left all the same',
  async (t) => {
    const pair = await startPair({ primary: { compareBytes: 16 * KiB, resyncRate: 64 * KiB } })
    const { group, next } = pair.primary
    const verified = next(({ event }) => event === 'REPLICATION_VERIFY')
    group.verify('repair')
    const exchanged = takenOver(pair)
    const ended = t.rejects(group.switchover(TIMEOUT_MS), IN_VAIN)
    t.match(await verified, {
      data: { state: 'unfinished', reason: 'this side is leaving its role' },
    })
    await exchanged
    await ended
    await pair.close()
  },
)

void t.test(
  'without a link after its last checkpoint a primary stays one, and serves on',
  async (t) => {
    const pair = await startPair()
    const { primary, secondary } = pair
    // Ahead of whoever awaits the checkpoint.
    beforeDone(pair, () => queueMicrotask(() => pair.cut()))
    await t.rejects(primary.group.switchover(TIMEOUT_MS), {
      code: 'LINK_LOST',
      message: /the secondary has gone meanwhile: cut/,
    })
    t.equal(primary.group.status().role, 'primary')
    t.equal(secondary.group.status().role, 'secondary')
    await primary.disk.write(Buffer.alloc(4096, 1), 0, 0)
    t.equal(primary.image.bytes[0], 1, 'its guest is not held up')
    await pair.close()
  },
)

void t.test(
  'a primary stays one where the other side has lost a disk with the last checkpoint',
  async (t) => {
    const did: string[] = []
    const machine = { protection: 'protected', lacking: {} }
    const primary = {
      machine,
      assertStays: () => undefined,
      hold: () => Promise.resolve(void did.push('hold')),
      unhold: () => did.push('unhold'),
      checkpoint: () => {
        machine.lacking = { b: 'new' }
        return Promise.resolve({ checkpoint: 7 })
      },
      handOver: () => did.push('hand over'),
    } as unknown as PrimarySide
    const stepDown = (): Promise<void> => Promise.resolve(void did.push('step down'))
    await t.rejects(
      leaveRole({ group: 'vm', primary, listens: true, timeoutMs: TIMEOUT_MS, stepDown }),
      { code: 'NOT_PERMITTED', message: /disk "b" is not on the other side/ },
    )
    t.same(did, ['hold', 'unhold'])
  },
)
