/** How far long work is, as people are told. */

import t from 'tap'

import { progressOf } from '../../replication/progress.ts'

void t.test('progress tells what is done, how fast, and what is left', (t) => {
  t.same(progressOf(250, 1000, 500), {
    ...{ doneBytes: 250, totalBytes: 1000, bytesPerSecond: 500, secondsLeft: 2 },
  })
  t.equal(progressOf(0, 1000, 0).secondsLeft, null, 'nothing can be estimated from nothing')
  t.end()
})

void t.test('work that a guest adds to meanwhile is never done by more than all', (t) => {
  for (const done of [1000, 1001, 4000]) {
    const { doneBytes, secondsLeft } = progressOf(done, 1000, 1000)
    t.same([doneBytes, secondsLeft], [1000, 0])
  }
  t.end()
})
