import t from 'tap'

import { BufferPool, type PoolSlot } from '../../core/buffer-pool.ts'
import { KiB } from '../../core/units.ts'
import { MemoryClaim, MemoryShare } from '../../nbd/memory-share.ts'

const UNIT = 4 * KiB
/** So many connections that no allotment is left for one. */
const CROWD = 2 ** 40

/** Takes units until refused. */
function fill(share: MemoryShare, claim: MemoryClaim): PoolSlot[] {
  const slots: PoolSlot[] = []
  for (;;) {
    const slot = share.acquire(claim, UNIT)
    if (slot === undefined) return slots
    slots.push(slot)
  }
}

const idle = (): MemoryClaim => new MemoryClaim(() => undefined)

void t.test('greedy connections leave as much free as each of them holds', (t) => {
  const share = new MemoryShare(new BufferPool(120 * UNIT), CROWD)
  const counts = [idle(), idle(), idle()].map((claim) => fill(share, claim).length)
  t.strictSame(counts, [60, 30, 15])
  t.ok(share.acquire(idle(), UNIT), 'a newcomer is served')
  t.notOk(share.contended, 'who holds memory is not queued')
  t.end()
})

void t.test('who holds nothing waits in line, and a large request is not overtaken', async (t) => {
  const pool = new BufferPool(8 * UNIT)
  const share = new MemoryShare(pool, CROWD)
  const holder = idle()
  const slots = fill(share, holder)
  t.equal(slots.length, 4)
  const order: string[] = []
  const large: MemoryClaim = new MemoryClaim(() => {
    if (share.acquire(large, 8 * UNIT) !== undefined) order.push('large')
  })
  t.equal(share.acquire(large, 8 * UNIT), undefined)
  const small: MemoryClaim = new MemoryClaim(() => {
    if (share.acquire(small, UNIT) !== undefined) order.push('small')
  })
  t.equal(share.acquire(small, UNIT), undefined, 'although a unit is free')
  t.equal(share.acquire(holder, UNIT), undefined, 'the holder gets no more meanwhile')
  for (const slot of slots) share.release(holder, slot)
  await new Promise(setImmediate)
  t.strictSame(order, ['large'])
  t.equal(pool.bytesInUse, 8 * UNIT)
  share.cancel(small)
  t.notOk(share.contended)
})

void t.test('a connection that leaves the line lets the next one try', async (t) => {
  const share = new MemoryShare(new BufferPool(2 * UNIT), CROWD)
  const holder = idle()
  t.ok(share.acquire(holder, UNIT))
  const gone = idle()
  t.equal(share.acquire(gone, 2 * UNIT), undefined)
  const served = new Promise<void>((resolve) => {
    const next: MemoryClaim = new MemoryClaim(() => {
      if (share.acquire(next, UNIT) !== undefined) resolve()
    })
    t.equal(share.acquire(next, UNIT), undefined)
  })
  share.cancel(gone)
  await served
})

void t.test('what can never fit is known beforehand', (t) => {
  const share = new MemoryShare(new BufferPool(3 * UNIT), CROWD)
  t.notOk(share.exceedsPool(2 * UNIT))
  t.ok(share.exceedsPool(2 * UNIT + 1), 'the size class is what counts')
  t.end()
})

void t.test('what is a connection’s own is there for it, whoever holds or awaits the rest', (t) => {
  const pool = new BufferPool(64 * UNIT)
  // A quarter of the pool for four connections: four units each, and 48 for all.
  const share = new MemoryShare(pool, 4)
  const [first, second, waiting, healthy] = [idle(), idle(), idle(), idle()]
  const large = share.acquire(first, 32 * UNIT)
  t.ok(large)
  t.ok(share.acquire(second, 16 * UNIT))
  t.equal(share.acquire(waiting, 32 * UNIT), undefined, 'there is no room for this one')
  t.ok(share.contended)
  const own = [1, 2, 3, 4].map(() => share.acquire(healthy, UNIT))
  t.ok(own.every((slot) => slot !== undefined))
  t.equal(share.acquire(healthy, UNIT), undefined, 'and no more than that')
  t.ok(pool.bytesInUse <= pool.limit)
  for (const slot of own) if (slot !== undefined) share.release(healthy, slot)
  if (large !== undefined) share.release(first, large)
  t.ok(share.acquire(waiting, 32 * UNIT), 'who waits is next')
  t.end()
})
