/** Who may follow whom, and what is sent to it: every rule of the verdict, case by case. */

import t, { type Test } from 'tap'

import {
  verdictOn,
  type Hello,
  type RefusalCode,
  type Verdict,
} from '../../../replication/machine/handshake.ts'
import { MAX_HISTORY, type Fork } from '../../../replication/machine/replica-state.ts'
import { PRIMARY, SECONDARY } from './hellos.ts'

const write = (generation: string, checkpoint: number): Fork => ({
  ...{ generation, checkpoint, by: 'write' },
})
const promote = (generation: string, checkpoint: number): Fork => ({
  ...{ generation, checkpoint, by: 'promote' },
})

/** It went on alone after checkpoint 5. */
const ALONE: Partial<Hello> = { generation: 'g2', history: [write('g1', 5)] }
/** It was promoted at checkpoint 5. */
const PROMOTED: Partial<Hello> = {
  ...{ generation: 'g3', history: [promote('g1', 5)], term: 2 },
  ...{ checkpoint: 5, announced: null, wrote: true },
}
const AS_BEFORE: Expected = ['changes', 5, 'joins']
const BEHIND_ALONE: Expected = ['changes', 5, 'settles']
const FRESH: Partial<Hello> = {
  ...{ generation: null, checkpoint: 0, announced: 0, wrote: false },
}

/** Everything, what changed since a checkpoint (and whether it settles), or a refusal. */
type Expected =
  | 'everything'
  | readonly ['changes', at: number, kind: 'joins' | 'settles']
  | readonly [code: RefusalCode, reason: RegExp]

type Case = readonly [
  what: string,
  source: Partial<Hello>,
  target: Partial<Hello>,
  expected: Expected,
]

function verdict(source: Partial<Hello>, target: Partial<Hello>): Verdict {
  return verdictOn({ ...PRIMARY, ...source }, { ...SECONDARY, ...target })
}

function check(t: Test, cases: readonly Case[]): void {
  for (const [what, source, target, expected] of cases) {
    const found = verdict(source, target)
    if (expected === 'everything')
      t.same(found, { kind: 'follow', resync: 'everything', at: 0, settles: true }, what)
    else if (expected[0] === 'changes') {
      const [resync, at, kind] = expected
      t.same(found, { kind: 'follow', resync, at, settles: kind === 'settles' }, what)
    } else t.match(found, { kind: 'refuse', code: expected[0], reason: expected[1] }, what)
  }
}

void t.test('what is configured differently is refused before anything else is looked at', (t) => {
  const versions = { protocol: { min: 2, max: 3 } }
  check(t, [
    ['disks listed in another order', {}, { disks: [...PRIMARY.disks].reverse() }, AS_BEFORE],
    [
      'versions that overlap',
      { protocol: { min: 1, max: 3 } },
      { protocol: { min: 2, max: 9 } },
      AS_BEFORE,
    ],
    ['a newer peer only', {}, versions, ['version', /speaks 1-1, the secondary 2-3/]],
    ['an older peer only', versions, {}, ['version', /speaks 2-3, the secondary 1-1/]],
    [
      'another group',
      { group: 'x' },
      {},
      ['configuration', /groups differ: primary "x", secondary "vm"/],
    ],
    [
      'another mode',
      {},
      { mode: 'remus' },
      ['configuration', /modes differ: primary colo, secondary remus/],
    ],
    ['the replica itself', {}, { replica: 'p' }, ['configuration', /cannot follow itself/]],
    [
      'a secondary that dials',
      { role: 'secondary' },
      {},
      ['configuration', /connecting side is secondary/],
    ],
    ['two primaries', {}, { role: 'primary' }, ['configuration', /both sides are primaries/]],
    [
      'another group, with another history',
      { group: 'x' },
      { generation: 'g9' },
      ['configuration', /groups differ/],
    ],
  ])
  t.end()
})

void t.test('a secondary of the same line gets what it lacks', (t) => {
  check(t, [
    ['one that is where its primary is', {}, {}, AS_BEFORE],
    [
      'one that committed what it could not confirm',
      {},
      { checkpoint: 7 },
      ['changes', 7, 'joins'],
    ],
    [
      'whatever a primary that crashed may have announced',
      { announced: null },
      { checkpoint: 9 },
      ['changes', 9, 'joins'],
    ],
    ['one in the middle of a copy', {}, { consistent: false }, ['changes', 5, 'settles']],
    ['one that has lost what it had committed', {}, { checkpoint: 4 }, 'everything'],
    ['one of a newer term', {}, { term: 2 }, ['deposed', /newer primary/]],
    ['one of an older term', { term: 3 }, { term: 2 }, AS_BEFORE],
    [
      'one ahead of what was announced',
      {},
      { checkpoint: 8 },
      ['history', /at checkpoint 8, which this primary never announced.*--discard/],
    ],
    [
      'one ahead of what was announced, whose changes are given up',
      { discard: 'remote' },
      { checkpoint: 8 },
      'everything',
    ],
  ])
  t.end()
})

void t.test('a secondary that knows nothing gets everything', (t) => {
  const first: Partial<Hello> = { checkpoint: 0, announced: 0 }
  check(t, [
    ['a fresh one', {}, FRESH, 'everything'],
    ['a fresh one, and a fresh primary', first, FRESH, 'everything'],
    [
      'an operator says that both begin equal',
      { ...first, identical: true },
      FRESH,
      ['changes', 0, 'joins'],
    ],
    ['which is only so at the beginning', { identical: true }, FRESH, 'everything'],
    [
      'or before the primary went on alone',
      { ...first, ...ALONE, identical: true },
      FRESH,
      'everything',
    ],
    [
      'a primary that knows nothing itself',
      { generation: null },
      {},
      ['history', /holds nothing that could be followed/],
    ],
    [
      'a primary that is a mixture',
      { consistent: false },
      FRESH,
      ['history', /holds nothing that could be followed/],
    ],
  ])
  t.end()
})

void t.test('a side that was left behind by a primary alone gets what changed since', (t) => {
  check(t, [
    ['a secondary that stayed where it was', ALONE, {}, BEHIND_ALONE],
    [
      'one that committed more than its primary heard of',
      ALONE,
      { checkpoint: 7 },
      ['changes', 7, 'settles'],
    ],
    ['one in the middle of a copy', ALONE, { consistent: false }, ['changes', 5, 'settles']],
    ['one further than was announced', ALONE, { checkpoint: 8 }, 'everything'],
    ['one that went back', ALONE, { checkpoint: 4 }, 'everything'],
    ['a primary that has committed since', { ...ALONE, checkpoint: 6 }, {}, 'everything'],
    [
      'a primary that went on alone twice, with a commit in between',
      { generation: 'g4', history: [write('g1', 4), write('g2', 5)] },
      { checkpoint: 4 },
      'everything',
    ],
    [
      'a primary that went on alone twice at the same checkpoint',
      { generation: 'g4', history: [write('g1', 5), write('g2', 5)] },
      {},
      BEHIND_ALONE,
    ],
  ])
  t.end()
})

void t.test('an old primary gets what changed on either side since a promote', (t) => {
  const oldPrimary = { wrote: true, announced: 5 }
  check(t, [
    ['one that stopped at the promote', PROMOTED, oldPrimary, ['changes', 5, 'settles']],
    [
      'one that never heard of the last commit',
      PROMOTED,
      { ...oldPrimary, checkpoint: 4 },
      ['changes', 5, 'settles'],
    ],
    [
      'one that knows of a later checkpoint',
      PROMOTED,
      { ...oldPrimary, checkpoint: 6 },
      'everything',
    ],
    ['a side that does not know what it changed', PROMOTED, { checkpoint: 4 }, 'everything'],
    [
      'a promoted side that has committed since',
      { ...PROMOTED, checkpoint: 6 },
      oldPrimary,
      'everything',
    ],
    ['the old primary connects', {}, { ...PROMOTED, role: 'primary' }, ['deposed', /promoted/]],
    ['a secondary of the promoted side is asked', {}, PROMOTED, ['deposed', /promoted/]],
  ])
  t.end()
})

void t.test('two sides that both went on alone are refused until an operator has chosen', (t) => {
  const split = [
    'split',
    /both sides went on alone after checkpoint 5; this primary holds line g2 at checkpoint 5, the other side g3 at checkpoint 5; choose/,
  ] as const
  const win = { discard: 'remote' } as const
  check(t, [
    ['nobody has chosen', ALONE, PROMOTED, split],
    ['nor where both are primaries', ALONE, { ...PROMOTED, role: 'primary' }, split],
    [
      'the source gives up the other side',
      { ...ALONE, ...win },
      PROMOTED,
      ['changes', 5, 'settles'],
    ],
    [
      'the target gives itself up',
      ALONE,
      { ...PROMOTED, discard: 'local' },
      ['changes', 5, 'settles'],
    ],
    [
      'the source gives itself up',
      { ...ALONE, discard: 'local' },
      PROMOTED,
      ['deposed', /given up the changes of this side/],
    ],
    [
      'the target gives up the source',
      ALONE,
      { ...PROMOTED, discard: 'remote' },
      ['deposed', /given up the changes of this side/],
    ],
    [
      'both give up the other one',
      { ...ALONE, ...win },
      { ...PROMOTED, discard: 'remote' },
      ['split', /told to discard different changes/],
    ],
    [
      'a commit that the one that wrote never heard of',
      { ...ALONE, ...win },
      { ...PROMOTED, history: [promote('g1', 6)], checkpoint: 6 },
      ['changes', 5, 'settles'],
    ],
    [
      'the same, the other way round',
      { ...PROMOTED, ...win, history: [promote('g1', 6)], checkpoint: 6 },
      ALONE,
      ['changes', 6, 'settles'],
    ],
    [
      'the one that wrote was further than the one that was promoted',
      { ...ALONE, ...win },
      { ...PROMOTED, history: [promote('g1', 4)], checkpoint: 4 },
      'everything',
    ],
    ['the source has committed since', { ...ALONE, ...win, checkpoint: 6 }, PROMOTED, 'everything'],
    [
      'the target has committed since',
      { ...ALONE, ...win },
      { ...PROMOTED, checkpoint: 6 },
      'everything',
    ],
  ])
  t.end()
})

void t.test(
  'what cannot be told any more, an operator has to, and then everything is sent',
  (t) => {
    const lines = Array.from({ length: MAX_HISTORY - 1 }, (_, at) => write(`h${at}`, 6 + at))
    const long = { generation: 'g2', history: [write('g0', 1), ...lines], checkpoint: 99 }
    const away = { generation: 'g1', history: [write('g0', 1)] }
    check(t, [
      [
        'a side that may be behind, or may have gone on alone',
        long,
        away,
        [
          'split',
          /away for too long: since checkpoint 1 more lines were begun than the 16 .* g2 at checkpoint 99, the other side g1 at checkpoint 5; choose/,
        ],
      ],
      ['its data is given up', long, { ...away, discard: 'local' }, 'everything'],
      [
        'even where each side knows what it changed since',
        {
          ...{ generation: 'g2', history: [write('g0', 5), ...lines.map(() => write('h', 5))] },
          discard: 'remote',
        },
        { generation: 'g1', history: [write('g0', 5)] },
        'everything',
      ],
      [
        'the line that it holds is remembered',
        { ...long, history: [...long.history.slice(0, -1), write('g1', 5)], checkpoint: 5 },
        away,
        BEHIND_ALONE,
      ],
    ])
    t.end()
  },
)

void t.test('two sides that never met are refused until an operator has chosen', (t) => {
  const stranger = { generation: 'g9' }
  check(t, [
    ['nobody has chosen', {}, stranger, ['history', /never had anything to do.*--discard/]],
    ['the target is given up', {}, { ...stranger, discard: 'local' }, 'everything'],
    ['from the other side', { discard: 'remote' }, stranger, 'everything'],
    ['the source is given up', { discard: 'local' }, stranger, ['deposed', /given up/]],
  ])
  t.end()
})
