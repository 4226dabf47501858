import t from 'tap'

import { screenful } from '../../cli/progress.ts'
import { groupText } from '../../cli/status-text.ts'
import { CheckpointRates } from '../../cli/top.ts'
import { FakeGroup } from '../control/fake-group.ts'

void t.test('checkpoints a second are known from the second look on, for each group', (t) => {
  const rates = new CheckpointRates()
  const [one, other] = [new FakeGroup('one').state, new FakeGroup('other').state]
  t.equal(rates.of({ ...one, checkpoint: 10 }, 1000), undefined)
  t.equal(rates.of({ ...other, checkpoint: 7 }, 1500), undefined)
  t.equal(rates.of({ ...one, checkpoint: 20 }, 3000), 5)
  t.equal(rates.of({ ...other, checkpoint: 7 }, 3500), 0)
  t.equal(rates.of({ ...one, checkpoint: 2 }, 4000), 0, 'a new line may begin at a lower number')
  t.equal(rates.of({ ...one, checkpoint: 3 }, 4000), undefined, 'no time has passed')
  t.end()
})

void t.test('the rate stands beside the times, where there are checkpoints', (t) => {
  const times = { p50: 1500, p99: 2500 }
  const checkpoints = { count: 3, ageMs: 20, pauseUs: times, commitUs: times }
  const { state } = new FakeGroup('vm', { checkpoints })
  t.match(groupText(state, 19.96), /\(p50 \/ p99\); 20\.0 a second\n/)
  t.match(groupText(state), /\(p50 \/ p99\)\n/)
  t.notMatch(groupText({ ...state, checkpoints: null }, 1), /a second/)
  t.end()
})

void t.test('a screenful begins at the top, and leaves nothing of the one before', (t) => {
  t.equal(screenful('text'), '\u001b[H\u001b[Jtext\n')
  t.end()
})
