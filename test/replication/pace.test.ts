import t from 'tap'

import { Pace } from '../../replication/pace.ts'
import { ManualClock } from '../support/manual-clock.ts'

void t.test('work waits for the rate, and for a new one from when it is set', async (t) => {
  const clock = new ManualClock()
  const pace = new Pace({ timers: clock, nowMs: clock.nowMs }, 1000)
  let spent = 0
  const spend = (bytes: number): void => {
    void pace.spend(bytes).then(() => (spent += bytes))
  }
  spend(500)
  await clock.advance(499)
  t.equal(spent, 0)
  await clock.advance(1)
  t.equal(spent, 500)
  pace.setRate(0)
  spend(1_000_000)
  await clock.advance(0)
  t.equal(spent, 1_000_500, 'no rate, no wait')
  pace.setRate(1)
  spend(1000)
  await clock.advance(1000)
  t.equal(spent, 1_000_500)
  pace.setRate(100)
  await clock.advance(0)
  t.equal(spent, 1_001_500, 'nor does anything wait for a rate of before')
  spend(100)
  await clock.advance(999)
  t.equal(spent, 1_001_500, 'what was done before counts no more')
  await clock.advance(1)
  t.equal(spent, 1_001_600)
})
