/** How a secondary takes over from a primary that leaves its role to it. */

import t from 'tap'

import { frame } from '../../../replication/machine/frame.ts'
import type { SecondaryInput } from '../../../replication/machine/secondary-io.ts'
import {
  awaitCheckpoint,
  committed,
  CONNECTED,
  describe,
  greeting,
  hello,
  marker,
  newMachine,
  promote,
  REMEMBERED,
  tell,
  type Step,
} from './secondary-stories.ts'

const handover = (checkpoint: number, link = 1): SecondaryInput => ({
  type: 'handover',
  link,
  checkpoint,
  generation: 'h1',
})

const LEFT = 'the primary has left its role to this side'
const FAILED = 'this side could not take over: disk full; promote it when it can be remembered'
const ENDED: readonly string[] = ['discard', `LINK down: ${LEFT}`]
const ACTIVE: readonly string[] = [
  'activate',
  'ROLE active in term 2',
  'PROTECTION unprotected: active without a secondary',
]
const AT_ONE: readonly Step[] = [
  ...CONNECTED,
  [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
  [committed(1), ['1: send done 1', 'CHECKPOINT 1']],
]

/** What a handover is answered with that this side cannot take. */
function declined(asked: number, found: string): readonly string[] {
  const why = `the primary left its role at checkpoint ${asked}, but this side ${found}: promote the other one, which has all data`
  return [`1: close: ${why}`, 'discard', `LINK down: ${why}`, `PROTECTION unprotected: ${why}`]
}

const STORIES: readonly (readonly [story: string, steps: readonly Step[]])[] = [
  [
    'it is active once that is remembered, and nobody is deposed',
    [
      ...AT_ONE,
      [
        handover(1),
        [...ENDED, 'remember active of g1+h1 at 1 in term 2*', `PROTECTION unprotected: ${LEFT}`],
      ],
      [REMEMBERED, ACTIVE],
      [handover(1), []],
      [promote(1), ['#1 promoted']],
    ],
  ],
  [
    'the commits of empty epochs that came after the last one are awaited',
    [
      ...AT_ONE,
      [marker(2), ['commit 2 as secondary of g1 at 2 in term 1']],
      [handover(1), ['discard', `PROTECTION unprotected: ${LEFT}`]],
      [
        committed(2),
        ['CHECKPOINT 2', `LINK down: ${LEFT}`, 'remember active of g1+h1 at 2 in term 2*'],
      ],
      [REMEMBERED, ACTIVE],
    ],
  ],
  [
    'it takes over at a checkpoint that is being committed',
    [
      ...CONNECTED,
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
      [handover(1), ['discard', `PROTECTION unprotected: ${LEFT}`]],
      [
        committed(1),
        ['CHECKPOINT 1', `LINK down: ${LEFT}`, 'remember active of g1+h1 at 1 in term 2*'],
      ],
      [REMEMBERED, ACTIVE],
    ],
  ],
  [
    'a handover at a checkpoint that is not here is declined',
    [
      ...AT_ONE,
      [handover(2), declined(2, 'is at 1')],
      [hello(2, { checkpoint: 1, announced: 2 }), [...greeting(2, '1/1')]],
    ],
  ],
  [
    'a handover on a link that is not the current one is nothing',
    [[handover(0), []], ...AT_ONE, [handover(1, 2), []]],
  ],
  [
    'a commit that fails after a handover leaves the decision to an operator',
    [
      ...AT_ONE,
      [marker(2), ['commit 2 as secondary of g1 at 2 in term 1']],
      [handover(2), ['discard', `PROTECTION unprotected: ${LEFT}`]],
      [{ type: 'log-failed', reason: 'disk full' }, ['discard', `LINK down: ${LEFT}`]],
      [promote(1), ['discard', 'remember active of g1+h1 at 1 in term 2*']],
    ],
  ],
  [
    'a handover that cannot be remembered leaves it a secondary, which may be promoted',
    [
      ...AT_ONE,
      [
        handover(1),
        [...ENDED, 'remember active of g1+h1 at 1 in term 2*', `PROTECTION unprotected: ${LEFT}`],
      ],
      [
        { type: 'remember-failed', reason: 'disk full' },
        [`ERROR ${FAILED}`, `PROTECTION unprotected: ${FAILED}`],
      ],
      [promote(1), ['discard', 'remember active of g1+p1 at 1 in term 2*']],
      [
        REMEMBERED,
        [
          'activate',
          'ROLE active in term 2',
          '#1 promoted',
          'PROTECTION unprotected: active without a secondary',
        ],
      ],
    ],
  ],
  [
    'a primary that comes back while a handover is being remembered is sent away',
    [
      ...AT_ONE,
      [
        handover(1),
        [...ENDED, 'remember active of g1+h1 at 1 in term 2*', `PROTECTION unprotected: ${LEFT}`],
      ],
      [
        hello(2, { checkpoint: 1, announced: 1 }),
        [
          '2: send refuse unready in term 1: the secondary is being promoted',
          '2: close: the secondary is being promoted',
        ],
      ],
      [REMEMBERED, ACTIVE],
    ],
  ],
  [
    'a promote during a handover is the same decision',
    [
      ...AT_ONE,
      [
        handover(1),
        [...ENDED, 'remember active of g1+h1 at 1 in term 2*', `PROTECTION unprotected: ${LEFT}`],
      ],
      [promote(1), ['discard']],
      [
        REMEMBERED,
        [
          'activate',
          'ROLE active in term 2',
          '#1 promoted',
          'PROTECTION unprotected: active without a secondary',
        ],
      ],
    ],
  ],
  [
    'who waits for a checkpoint is told that there is none to come',
    [
      ...AT_ONE,
      [awaitCheckpoint(1), ['#1 done: 1, 0 bytes']],
      [awaitCheckpoint(2), []],
      [
        handover(1),
        [
          'discard',
          `#2 failed: LINK_LOST: no checkpoint is known to be committed: ${LEFT}`,
          `LINK down: ${LEFT}`,
          'remember active of g1+h1 at 1 in term 2*',
          `PROTECTION unprotected: ${LEFT}`,
        ],
      ],
    ],
  ],
]

void t.test('a handover', (t) => {
  for (const [story, steps] of STORIES) tell(t, story, newMachine(), steps)
  t.end()
})

void t.test('a handover with data that no checkpoint ends is declined', (t) => {
  const machine = newMachine()
  tell(t, 'data after the last checkpoint', machine, AT_ONE)
  machine.diskOf(1, frame('write', { payload: Buffer.alloc(512) }))
  t.same(machine.step(handover(1)).map(describe), declined(1, 'was sent more after it'))
  t.equal(machine.role, 'secondary')
  t.end()
})
