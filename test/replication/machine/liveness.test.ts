import t from 'tap'

import { Liveness } from '../../../replication/machine/liveness.ts'

const SETTINGS = { heartbeatMs: 100, timeoutMs: 500 }

type Step = readonly [atMs: number, does: 'heard' | 'nothing' | 'beat' | 'dead']

const STORIES: readonly (readonly [string, readonly Step[]])[] = [
  [
    'nothing is due at once',
    [
      [1000, 'nothing'],
      [1099, 'nothing'],
    ],
  ],
  [
    'a sign of life is sent once for each interval',
    [
      [1100, 'beat'],
      [1150, 'nothing'],
      [1200, 'beat'],
    ],
  ],
  [
    'being late does not send more of them',
    [
      [1390, 'beat'],
      [1391, 'nothing'],
      [1490, 'beat'],
    ],
  ],
  [
    'a peer that was never heard is dead after the timeout',
    [
      [1499, 'beat'],
      [1500, 'dead'],
    ],
  ],
  [
    'one that was heard is given the whole timeout again',
    [
      [1400, 'heard'],
      [1899, 'beat'],
      [1900, 'dead'],
    ],
  ],
  [
    'one that speaks again in time lives',
    [
      [1499, 'heard'],
      [1500, 'beat'],
      [1998, 'beat'],
      [1999, 'dead'],
    ],
  ],
]

void t.test('liveness', (t) => {
  for (const [story, steps] of STORIES) {
    const liveness = new Liveness(SETTINGS)
    liveness.start(1000)
    for (const [atMs, does] of steps) {
      if (does === 'heard') liveness.heard(atMs)
      else t.equal(liveness.tick(atMs), does, `${story}: at ${atMs}`)
    }
  }
  t.end()
})

void t.test('a new link starts anew', (t) => {
  const liveness = new Liveness(SETTINGS)
  liveness.start(0)
  t.equal(liveness.tick(500), 'dead')
  liveness.start(10_000)
  t.equal(liveness.tick(10_099), 'nothing')
  t.equal(liveness.tick(10_499), 'beat')
  t.equal(liveness.tick(10_500), 'dead')
  t.end()
})
