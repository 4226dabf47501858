import t from 'tap'

import { KiB } from '../../../core/units.ts'
import type { Ack } from '../../../replication/group.ts'
import { ForwardedWrites } from '../../../replication/machine/forwarded-writes.ts'

/** A write of each name on the present link; `done` lists those that were let go, in order. */
function sending(ack: Ack, ...names: string[]): { writes: ForwardedWrites; done: string[] } {
  const writes = new ForwardedWrites(512 * KiB)
  const done: string[] = []
  writes.begin()
  for (const name of names) {
    const position = writes.count(544, 0)
    writes.wait(writes.link, position, ack, () => done.push(name))
  }
  return { writes, done }
}

void t.test('with ack=sent a write is let go when the kernel has it', (t) => {
  t.same(sending('sent', 'a', 'b').done, ['a', 'b'])
  t.end()
})

void t.test('acknowledgements are cumulative, in the order of the frames', (t) => {
  const { writes, done } = sending('received', 'a', 'b', 'c')
  t.same(done, [])
  writes.acknowledge('received', 2, 'received', 0)
  t.same(done, ['a', 'b'])
  writes.acknowledge('received', 1, 'received', 0)
  t.same(done, ['a', 'b'], 'an older one says nothing new')
  writes.acknowledge('received', 3, 'received', 0)
  writes.acknowledge('received', 3, 'received', 0)
  t.same(done, ['a', 'b', 'c'])
  t.end()
})

void t.test('what is in memory is not durable, but what is durable was received', (t) => {
  const durable = sending('durable', 'a')
  durable.writes.acknowledge('received', 1, 'durable', 0)
  t.same(durable.done, [])
  durable.writes.acknowledge('stored', 1, 'durable', 0)
  t.same(durable.done, ['a'])
  const received = sending('received', 'a')
  received.writes.acknowledge('stored', 1, 'received', 0)
  t.same(received.done, ['a'])
  t.end()
})

void t.test('a write is let go when the kernel has it, if the acknowledgement came first', (t) => {
  const { writes, done } = sending('received')
  const position = writes.count(544, 0)
  writes.acknowledge('received', 1, 'received', 0)
  writes.wait(writes.link, position, 'received', () => done.push('a'))
  t.same(done, ['a'])
  t.end()
})

void t.test('more acknowledged than was sent is a fault of the peer', (t) => {
  const { writes } = sending('received', 'a')
  t.match(writes.acknowledge('received', 2, 'received', 0), /acknowledged 2 data frames, of 1/)
  t.end()
})

void t.test('what a lost link carried is stranded, and let go once', (t) => {
  const { writes, done } = sending('durable', 'a')
  const [link, position] = [writes.link, writes.count(544, 0)]
  writes.lose()
  // The kernel gives the buffer back after the loss.
  writes.wait(link, position, 'durable', () => done.push('b'))
  t.same([done, writes.areWaiting, writes.areStranded], [[], false, true])
  writes.releaseStranded()
  writes.releaseStranded()
  t.same(done, ['a', 'b'])
  t.end()
})

void t.test('a stranded write joins the link on which everything was sent again', (t) => {
  const { writes, done } = sending('durable', 'a')
  writes.begin()
  writes.acknowledge('stored', 0, 'durable', 0)
  t.same(done, [], 'an acknowledgement of the new link does not count for the old one')
  writes.count(544, 0)
  writes.count(544, 0)
  writes.rejoin('durable')
  writes.acknowledge('stored', 1, 'durable', 0)
  t.same(done, [])
  writes.acknowledge('stored', 2, 'durable', 0)
  t.same(done, ['a'])
  t.end()
})

void t.test('asking for less lets go what waited for more', (t) => {
  const { writes, done } = sending('durable', 'a', 'b')
  writes.acknowledge('received', 1, 'durable', 0)
  writes.release('received')
  t.same(done, ['a'])
  writes.release('sent')
  t.same(done, ['a', 'b'])
  t.end()
})

void t.test(
  'with ack=sent a write waits while more is under way than the link takes at once',
  (t) => {
    const { writes, done } = sending('sent')
    const names = ['a', 'b', 'c', 'd', 'e', 'f', 'g']
    for (const name of names)
      writes.wait(writes.link, writes.count(257 * KiB, 0), 'sent', () => done.push(name))
    t.same(done, ['a', 'b', 'c'], 'a frame has a header')
    writes.acknowledge('received', 1, 'sent', 1)
    t.same(done, ['a', 'b', 'c', 'd', 'e'])
    writes.lose()
    t.ok(writes.areStranded)
    writes.releaseStranded()
    t.same(done, names, 'a link that is lost holds nothing up')
    t.end()
  },
)

void t.test('a peer that does not tell what it has holds nothing up', (t) => {
  const { writes, done } = sending('sent')
  writes.unbound()
  for (let count = 0; count < 100; count += 1)
    writes.wait(writes.link, writes.count(256 * KiB, 0), 'sent', () => done.push('x'))
  t.equal(done.length, 100)
  t.end()
})
