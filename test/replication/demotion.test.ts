/** A primary that has to become a secondary while its journal cannot be written. */

import t from 'tap'

import type { GroupEvent } from '../../replication/group.ts'
import type { Frame } from '../../replication/machine/frame.ts'
import { decodeRefusal, type Hello } from '../../replication/machine/handshake.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { SIZE, startPair, startSide, type Side } from './comparison/one-process-pair.ts'
import { FakeLink } from './fake-link.ts'
import { MemorySegments } from './journal/memory-segments.ts'

/** As long as a demotion waits after a failure. */
const PAUSE_MS = 1000

/** Of the other side, which was promoted after the line that a primary begins here. */
const PROMOTED: Hello = {
  protocol: { min: 1, max: 1 },
  ...{ group: 'vm', mode: 'colo', role: 'primary', replica: 'other', term: 2 },
  ...{ generation: 'newer', checkpoint: 0, announced: null },
  history: [{ generation: 'first', checkpoint: 0, by: 'promote' }],
  ...{ consistent: true, wrote: false, capacity: 0, durable: false },
  ...{ discard: null, identical: false, features: [], ack: 'sent' },
  disks: [{ name: 'a', size: SIZE }],
}

const journaled = (store: MemorySegments): object => ({
  openSegments: () => Promise.resolve(store),
})

const isDemoted = ({ event, data }: GroupEvent): boolean =>
  event === 'REPLICATION_ROLE' && data.role === 'secondary'

const failsTo = ({ event, data }: GroupEvent): boolean =>
  event === 'REPLICATION_ERROR' && data.error.startsWith('this side cannot become a secondary yet')

interface Deposed extends Side {
  readonly clock: ManualClock
  readonly store: MemorySegments
}

/** A primary whom nobody has used, and whom another one has called while its journal fails. */
async function deposed(): Promise<Deposed> {
  const [clock, store] = [new ManualClock(), new MemorySegments()]
  const side = await startSide('primary', {
    settings: { durability: 'journal' },
    environment: { ...journaled(store), newId: () => 'first', timers: clock, nowMs: clock.nowMs },
  })
  // What it does by itself as it begins.
  await side.group.secondary.drained()
  store.failing = 'sync'
  const failed = side.next(failsTo)
  side.group.take(new FakeLink(), PROMOTED)
  await failed
  return { ...side, clock, store }
}

void t.test(
  '21: a demotion that fails is tried again, though the other side is refused for the size of a disk',
  async (t) => {
    const { group, next, clock, store, disk } = await deposed()
    const link = new FakeLink()
    group.take(link, { ...PROMOTED, disks: [{ name: 'a', size: 2 * SIZE }] })
    t.match(decodeRefusal(link.sent[0]!.payload), { code: 'unready', reason: /bytes/ })
    const waiting = group.status()
    t.match(waiting, { role: 'primary', leaving: true })
    t.match(waiting.error, /cannot become a secondary yet, and tries again: .*no space to sync/)
    await t.rejects(disk.resize(2 * SIZE), /this side is being demoted/)
    await t.rejects(async () => disk.write(Buffer.alloc(4096, 1), 0, 0), /being demoted/)
    await t.rejects(group.promote(true), /leaving its role/, 'it is not active')

    await clock.advance(PAUSE_MS)
    t.equal(group.status().role, 'primary', 'the journal still fails')
    store.failing = undefined
    const demoted = next(isDemoted)
    await clock.advance(PAUSE_MS)
    await demoted
    t.match(group.status(), { role: 'secondary', leaving: false, error: null })
    await t.rejects(disk.resize(2 * SIZE), /one size/, 'only its image is against it now')
    await disk.close()
  },
)

void t.test('nothing is tried any more once the group ends', async (t) => {
  const { group, clock, store, disk } = await deposed()
  store.failing = undefined
  await disk.close()
  t.equal(clock.waiting, 0)
  t.equal(group.status().role, 'primary', 'it remembers what it was')
})

void t.test('what a call has brought to its end is not tried again', async (t) => {
  const { group, clock, store, disk, events } = await deposed()
  store.failing = undefined
  const { role } = await group.demote(false)
  t.equal(role, 'secondary')
  const before = events.length
  await clock.advance(2 * PAUSE_MS)
  t.equal(events.length, before)
  t.equal(group.demoting, false)
  await disk.close()
})

void t.test(
  'an exchange of the roles whose last step fails is answered as failed, and comes to its end when the journal can be written',
  async (t) => {
    const store = new MemorySegments()
    const pair = await startPair({
      primary: { durability: 'journal' },
      environment: journaled(store),
    })
    const { primary, secondary } = pair
    pair.back = (frame: Frame) => {
      if (frame.type === 'done') store.failing = 'sync'
      return frame
    }
    await t.rejects(primary.group.switchover(2000), /cannot become a secondary yet, and tries/)
    t.equal(secondary.group.status().role, 'secondary', 'nobody else leads before that is durable')
    const ended = Promise.all([
      primary.next(isDemoted),
      secondary.next(({ event }) => event === 'REPLICATION_ROLE'),
    ])
    store.failing = undefined
    await ended
    t.equal(secondary.group.status().role, 'active')
    t.equal(primary.group.status().role, 'secondary')
    await pair.close()
  },
)
