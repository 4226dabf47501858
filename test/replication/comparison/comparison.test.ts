/** Questions of a primary about what its secondary holds. */

import t from 'tap'

import { MOST_ASKED, Comparison } from '../../../replication/comparison/comparison.ts'
import type { Link } from '../../../replication/environment.ts'
import { frame, type Frame } from '../../../replication/machine/frame.ts'
import type { PrimaryDisk } from '../../../replication/primary-disk.ts'

/** A comparison whose questions are answered by the test, with what both sides hold being equal. */
function open(): {
  comparison: Comparison
  asked: Frame[]
  ask: (at: number) => Promise<unknown>
  answer: (question: Frame | undefined) => void
} {
  const asked: Frame[] = []
  const link = { send: (question: Frame) => asked.push({ ...question }) }
  const comparison = new Comparison(
    link as unknown as Link,
    {
      sums: () => Promise.resolve(Buffer.alloc(0)),
    } as unknown as ConstructorParameters<typeof Comparison>[1],
  )
  const disk = {
    number: 0,
    capture: <T>(_buffer: Buffer, _at: number, then: () => T) => Promise.resolve(then()),
  }
  return {
    comparison,
    asked,
    ask: (at) => comparison.compare(disk as unknown as PrimaryDisk, at, Buffer.alloc(4096)),
    answer: (question) => {
      if (question === undefined) throw new Error('nothing was asked')
      const { disk, position, extent } = question
      comparison.take(frame('sums', { disk, position, extent }))
    },
  }
}

const turn = (): Promise<void> => new Promise(setImmediate)

void t.test(
  'a range that nobody wants to know of any more is asked about again later',
  async (t) => {
    const { asked, ask, answer } = open()
    const first = ask(0)
    await turn()
    const second = ask(0)
    await turn()
    t.equal(asked.length, 1, 'not while a question about it is open')
    answer(asked[0])
    await first
    await turn()
    t.equal(asked.length, 2)
    answer(asked[1])
    await second
  },
)

void t.test('no more questions are open than the secondary takes', async (t) => {
  const { comparison, asked, ask, answer } = open()
  const all = Array.from({ length: 2 * MOST_ASKED }, (_, count) => ask(4096 * count))
  await turn()
  t.equal(asked.length, MOST_ASKED)
  answer(asked[0])
  await turn()
  await turn()
  t.equal(asked.length, MOST_ASKED + 1)
  comparison.end()
  await Promise.all(all)
  t.equal(asked.length, MOST_ASKED + 1, 'and none when the link is gone')
})
