/** How a secondary becomes the active copy, and what is remembered of it. */

import t from 'tap'

import {
  awaitCheckpoint,
  committed,
  CONNECTED,
  describe,
  down,
  greeting,
  hello,
  IS_ACTIVE,
  LOST,
  LOST_IN_COMMIT,
  marker,
  newMachine,
  promote,
  PROMOTED,
  REMEMBERED,
  tell,
  type Step,
} from './secondary-stories.ts'

const MIXTURE =
  'this copy is a mixture: a copy from the primary was broken off; let it finish, or use force to serve it as it is'
const IS_INCONSISTENT = 'PROTECTION inconsistent: cut'
/** A whole secondary, whose link was lost while the first part of a copy was being committed. */
const HALF_COPIED: readonly Step[] = [
  [hello(1), greeting(1)],
  [marker(1, 1, true), ['commit 1 as secondary of g1 at 1 in term 1!']],
  LOST_IN_COMMIT,
]

const STORIES: readonly (readonly [story: string, steps: readonly Step[]])[] = [
  [
    'a promote is refused while the primary lives, unless it is forced',
    [
      ...CONNECTED,
      [
        promote(1),
        [
          '#1 not promoted: its primary peer is connected and alive; stop the primary first, or use force',
        ],
      ],
      [
        promote(1, true),
        [
          'discard',
          'LINK down: the secondary is being promoted',
          'remember active of g1+p1 at 0 in term 2*',
          'PROTECTION unprotected: the secondary is being promoted',
        ],
      ],
      [
        REMEMBERED,
        ['1: send refuse deposed in term 2: ' + IS_ACTIVE, '1: close: ' + IS_ACTIVE, ...PROMOTED],
      ],
    ],
  ],
  [
    'a promote after the loss of the primary is taken once, and deposes whoever comes',
    [
      ...CONNECTED,
      LOST,
      [promote(1), ['discard', 'remember active of g1+p1 at 0 in term 2*']],
      [REMEMBERED, PROMOTED],
      [promote(2), ['#2 promoted']],
      [promote(3, true), ['#3 promoted']],
      [
        hello(2),
        ((reason) => [`2: send refuse deposed in term 2: ${reason}`, `2: close: ${reason}`])(
          'the other side was promoted, or went on alone, after this line',
        ),
      ],
      [awaitCheckpoint(4), ['#4 failed: NOT_PERMITTED: this side is active and has no secondary']],
    ],
  ],
  [
    'a promote waits for the commits that were begun, and no primary is taken meanwhile',
    [
      ...CONNECTED,
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
      [marker(2), ['commit 2 as secondary of g1 at 2 in term 1']],
      LOST_IN_COMMIT,
      [promote(1), ['discard']],
      [committed(1), ['CHECKPOINT 1']],
      [promote(2), ['discard']],
      [
        hello(2, { announced: 2 }),
        [
          '2: send refuse unready in term 1: the secondary is being promoted',
          '2: close: the secondary is being promoted',
        ],
      ],
      [
        committed(2),
        ['CHECKPOINT 2', 'LINK down: cut', 'remember active of g1+p1 at 2 in term 2*'],
      ],
      [
        REMEMBERED,
        [
          'activate',
          'ROLE active in term 2',
          '#1 promoted',
          '#2 promoted',
          'PROTECTION unprotected: active without a secondary',
        ],
      ],
    ],
  ],
  [
    'a promote that was begun while a part of a copy was being committed finds a mixture',
    [
      ...HALF_COPIED,
      [promote(1), ['discard']],
      [promote(2), ['discard']],
      [
        committed(1),
        [
          'LINK down: cut',
          `#1 not promoted: ${MIXTURE}`,
          `#2 not promoted: ${MIXTURE}`,
          IS_INCONSISTENT,
        ],
      ],
      [hello(2, { checkpoint: 1, announced: 1 }), greeting(2, '1/1')],
    ],
  ],
  [
    'it finds the whole copy where its end was being committed as well',
    [
      ...HALF_COPIED.slice(0, -1),
      [marker(2), ['commit 2 as secondary of g1 at 2 in term 1']],
      LOST_IN_COMMIT,
      [promote(1), ['discard']],
      [committed(1), [IS_INCONSISTENT]],
      [
        committed(2),
        [
          'forget-changes',
          'CHECKPOINT 2',
          'LINK down: cut',
          'remember active of g1+p1 at 2 in term 2*',
          'PROTECTION unprotected: cut',
        ],
      ],
      [REMEMBERED, PROMOTED],
    ],
  ],
  [
    'and takes the mixture where one of the commands is forced',
    [
      ...HALF_COPIED,
      [promote(1), ['discard']],
      [promote(2, true), ['discard']],
      [
        committed(1),
        ['LINK down: cut', 'remember active of g1+p1 at 1 in term 2*', IS_INCONSISTENT],
      ],
      [
        REMEMBERED,
        [
          'activate',
          'ROLE active in term 2',
          '#1 promoted',
          '#2 promoted',
          'PROTECTION unprotected: active without a secondary',
        ],
      ],
    ],
  ],
  [
    'a side whose primary is fenced meanwhile does not take a mixture over',
    [
      ...HALF_COPIED,
      [{ type: 'fenced', fenced: true, generation: 'f1' }, ['discard']],
      [
        committed(1),
        [
          'LINK down: cut',
          `ERROR this side could not take over: ${MIXTURE}`,
          `PROTECTION inconsistent: this side could not take over: ${MIXTURE}`,
        ],
      ],
      [promote(1), [`#1 not promoted: ${MIXTURE}`]],
    ],
  ],
  [
    'a promote that cannot be remembered is refused, and the primary is taken again',
    [
      ...CONNECTED,
      LOST,
      [promote(1), ['discard', 'remember active of g1+p1 at 0 in term 2*']],
      [{ type: 'remember-failed', reason: 'disk full' }, ['#1 not promoted: disk full']],
      [hello(2), greeting(2)],
    ],
  ],
]

void t.test('a promote', (t) => {
  for (const [story, steps] of STORIES) tell(t, story, newMachine(), steps)
  t.end()
})

void t.test('a secondary that holds no state of a disk is promoted by force only', (t) => {
  const cases = [
    [{ generation: null }, /never copied from a primary.*force/, 'p2', 'a fresh one'],
    [{ consistent: false }, /is a mixture.*force/, 'g1+p2', 'one in the middle of a copy'],
  ] as const
  for (const [remembered, reason, line, what] of cases) {
    const machine = newMachine(remembered)
    const [refusal, ...others] = machine.step(promote(1)).map(describe)
    t.match(refusal, /^#1 not promoted: /, what)
    t.match(refusal, reason, what)
    t.same(others, [], what)
    const forced = machine.step(promote(2, true)).map(describe)
    t.same(forced, ['discard', `remember active of ${line} at 0 in term 2*`], what)
    t.equal(machine.role, 'secondary', 'not before it is remembered')
    machine.step(REMEMBERED)
    t.same([machine.role, machine.consistent], ['active', true], what)
  }
  t.end()
})

void t.test('a secondary says what it is', (t) => {
  const machine = newMachine()
  const state = (): unknown[] => [machine.role, machine.committed, machine.term, machine.peer]
  t.same(state(), ['secondary', 0, 1, null])
  machine.step(hello(1, { term: 4 }))
  machine.step(marker(3))
  machine.step(committed(3))
  t.same(state(), ['secondary', 3, 4, 'peer'])
  machine.step(promote(1, true))
  t.same(state(), ['secondary', 3, 4, null], 'not before it is remembered')
  machine.step(REMEMBERED)
  t.same(state(), ['active', 3, 5, null])
  t.match(machine.state, { generation: 'p1', role: 'active', checkpoint: 3, announced: null })
  t.end()
})

void t.test('a promote leaves the line where the primary that was last followed had it', (t) => {
  const machine = newMachine({ checkpoint: 2 })
  const history = [{ generation: 'g1', checkpoint: 2, by: 'write' }] as const
  const alone = { generation: 'g2', history, checkpoint: 2, announced: 2 }
  machine.step(hello(1, alone))
  machine.step(marker(3))
  machine.step(committed(3))
  machine.step(down(1))
  t.same(machine.step(promote(1)).map(describe), [
    'discard',
    'remember active of g1+g2+p1 at 3 in term 2*',
  ])
  machine.step(REMEMBERED)
  t.same(machine.state.history, [...history, { generation: 'g2', checkpoint: 3, by: 'promote' }])
  t.end()
})
