import { createHash } from 'node:crypto'

import t from 'tap'

import { SUM_BLOCK, SUM_SIZE, Summer, sumsOf } from '../../../replication/comparison/checksums.ts'
import { ManualClock } from '../../support/manual-clock.ts'

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

void t.test('each piece has its SHA-256, empty and short ones included', (t) => {
  const content = Buffer.from(new SharedArrayBuffer(3 * SUM_BLOCK + 512))
  content.fill(7, 0, SUM_BLOCK)
  content[2 * SUM_BLOCK] = 1
  const sums = sumsOf(content)
  t.equal(sums.length, 4 * SUM_SIZE)
  for (const piece of [0, 1, 2, 3])
    t.equal(
      sums.subarray(piece * SUM_SIZE, (piece + 1) * SUM_SIZE).toString('hex'),
      sha256(content.subarray(piece * SUM_BLOCK, (piece + 1) * SUM_BLOCK)),
      `piece ${piece}`,
    )
  t.end()
})

void t.test('one range is summed in a turn of the event loop, in order', async (t) => {
  const clock = new ManualClock()
  const summer = new Summer(clock)
  const done: number[] = []
  for (const number of [1, 2, 3])
    void summer.sums(Buffer.alloc(512, number)).then(() => done.push(number))
  await new Promise(setImmediate)
  t.same(done, [1], 'the next one waits for its turn')
  await clock.advance(0)
  t.same(done, [1, 2, 3])
})
