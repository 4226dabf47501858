import t from 'tap'

import { Fault } from '../../core/fault.ts'
import { KiB } from '../../core/units.ts'
import { Acknowledger } from '../../replication/acknowledger.ts'
import { frame } from '../../replication/machine/frame.ts'
import { ACKS, type Ack } from '../../replication/group.ts'

/** An acknowledger over a log whose flushes the test ends. */
function watched(): {
  readonly acknowledger: Acknowledger
  readonly said: string[]
  readonly flushes: { readonly end: () => void; readonly fail: (fault: Fault) => void }[]
} {
  const said: string[] = []
  const flushes: { end: () => void; fail: (fault: Fault) => void }[] = []
  const acknowledger = new Acknowledger(
    {
      sync: () =>
        new Promise((resolve, reject) => {
          flushes.push({ end: resolve, fail: reject })
        }),
      send: (link, { type, position }) => said.push(`${link}: ${type} ${position}`),
    },
    512 * KiB,
  )
  return { acknowledger, said, flushes }
}

const DATA = frame('write', { payload: Buffer.alloc(512) })
const levelOf = (ack: Ack): number => ACKS.indexOf(ack)
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

void t.test('nobody is told who does not ask', async (t) => {
  const { acknowledger, said, flushes } = watched()
  acknowledger.took(1, DATA)
  await turn()
  t.same([said, flushes.length], [[], 0])
})

void t.test('what arrives in one turn is acknowledged at once', async (t) => {
  const { acknowledger, said } = watched()
  acknowledger.ask(1, levelOf('received'))
  for (let frames = 0; frames < 3; frames += 1) acknowledger.took(1, DATA)
  t.same(said, [])
  await turn()
  t.same(said, ['1: received 3'])
  await turn()
  t.same(said, ['1: received 3'], 'and not again')
})

void t.test('frames from before the question count', async (t) => {
  const { acknowledger, said } = watched()
  acknowledger.took(1, DATA)
  acknowledger.took(1, DATA)
  acknowledger.ask(1, levelOf('received'))
  await turn()
  t.same(said, ['1: received 2'])
  acknowledger.ask(1, levelOf('sent'))
  acknowledger.took(1, DATA)
  await turn()
  t.same(
    said,
    ['1: received 2', '1: received 3'],
    'one that asks to be told in steps is told where it stands',
  )
  acknowledger.took(1, DATA)
  await turn()
  t.equal(said.length, 2, 'and then in steps')
})

void t.test(
  'what is stored is told after the flush that covers it, and flushes are shared',
  async (t) => {
    const { acknowledger, said, flushes } = watched()
    acknowledger.ask(1, levelOf('durable'))
    acknowledger.took(1, DATA)
    await turn()
    t.same([said, flushes.length], [[], 1])
    acknowledger.took(1, DATA)
    await turn()
    acknowledger.took(1, DATA)
    await turn()
    t.equal(flushes.length, 1, 'one at a time')
    flushes[0]!.end()
    await turn()
    t.same([said, flushes.length], [['1: stored 1'], 2])
    flushes[1]!.end()
    await turn()
    t.same([said, flushes.length], [['1: stored 1', '1: stored 3'], 2])
  },
)

void t.test('a flush of what came on an old link says nothing on the new one', async (t) => {
  const { acknowledger, said, flushes } = watched()
  acknowledger.ask(1, levelOf('durable'))
  acknowledger.took(1, DATA)
  acknowledger.took(1, DATA)
  await turn()
  acknowledger.ask(2, levelOf('durable'))
  acknowledger.took(2, DATA)
  await turn()
  flushes[0]!.end()
  await turn()
  t.same(said, [])
  flushes[1]!.end()
  await turn()
  t.same(said, ['2: stored 1'])
})

void t.test(
  'a log that fails acknowledges nothing, and is asked again for what comes later',
  async (t) => {
    const { acknowledger, said, flushes } = watched()
    acknowledger.ask(1, levelOf('durable'))
    acknowledger.took(1, DATA)
    await turn()
    flushes[0]!.fail(new Fault('IO', 'the disk is gone'))
    await turn()
    t.same(said, [])
    acknowledger.ask(2, levelOf('durable'))
    acknowledger.took(2, DATA)
    await turn()
    flushes[1]!.end()
    await turn()
    t.same(said, ['2: stored 1'])
  },
)

void t.test('a level that does not exist is a fault of the peer', (t) => {
  t.throws(() => watched().acknowledger.ask(1, 3), { code: 'PROTOCOL' })
  t.end()
})

void t.test('a primary whose writes do not wait is told in steps, also of zeroes', async (t) => {
  const { acknowledger, said } = watched()
  acknowledger.ask(1, levelOf('sent'))
  await turn()
  const block = frame('write', { payload: Buffer.alloc(64 * KiB) })
  acknowledger.took(1, block)
  await turn()
  t.same(said, [])
  acknowledger.took(1, block)
  await turn()
  t.same(said, ['1: received 2'])
  for (let count = 0; count < 4096; count += 1) acknowledger.took(1, frame('zero'))
  await turn()
  t.same(said, ['1: received 2', '1: received 4098'])
})
