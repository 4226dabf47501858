import t from 'tap'

import { AdaptivePolling } from '../../core/adaptive-polling.ts'

/** Of `occasions`, those on which it is tried; each ends as `outcome` says. */
function tried(polling: AdaptivePolling, occasions: number, outcome: 'pays off' | 'fails'): number {
  let times = 0
  for (let each = 0; each < occasions; each += 1) {
    if (!polling.tries()) continue
    times += 1
    if (outcome === 'fails') polling.failed()
    else polling.paidOff()
  }
  return times
}

void t.test('what pays off is tried each time', (t) => {
  t.equal(tried(new AdaptivePolling(), 1000, 'pays off'), 1000)
  t.end()
})

void t.test('what fails is tried less and less, but never given up', (t) => {
  const polling = new AdaptivePolling()
  const early = tried(polling, 1000, 'fails')
  t.ok(early < 40, `${early} of the first 1,000`)
  const late = tried(polling, 3200, 'fails')
  t.ok(late >= 99 && late <= 101, `${late} of 3,200`)
  t.end()
})

void t.test('one success after failures counts', (t) => {
  const polling = new AdaptivePolling()
  tried(polling, 10_000, 'fails')
  while (!polling.tries());
  polling.paidOff()
  t.equal(tried(polling, 100, 'pays off'), 100)
  t.end()
})

void t.test('a failure among successes changes nothing', (t) => {
  const polling = new AdaptivePolling()
  tried(polling, 10, 'pays off')
  for (let each = 0; each < 100; each += 1) {
    t.equal(tried(polling, 1, 'fails'), 1)
    t.equal(tried(polling, 1, 'pays off'), 1)
  }
  t.equal(tried(polling, 11, 'fails'), 11)
  t.equal(tried(polling, 1, 'fails'), 0, 'many in a row do')
  t.end()
})
