/** How lines of data stand to each other, also when one of them was left too often to remember each time. */

import t from 'tap'

import {
  forked,
  MAX_HISTORY,
  relate,
  type Lineage,
} from '../../../replication/machine/replica-state.ts'

const FIRST: Lineage = { generation: 'g0', history: [] }
const MANY = 3 * MAX_HISTORY

/** The line after so many more, each left at the checkpoint that `at` says. */
function later(
  from: Lineage,
  name: string,
  count: number,
  at: (fork: number) => number,
  by: 'write' | 'promote' = 'write',
): Lineage {
  let line = from
  for (let fork = 0; fork < count; fork += 1) line = forked(line, `${name}${fork}`, at(fork), by)
  return line
}

void t.test('what came before a line is remembered, up to a limit', (t) => {
  const few = later(FIRST, 'a', 3, (fork) => fork)
  t.same(
    few.history.map(({ generation, checkpoint }) => `${generation} ${checkpoint}`),
    ['g0 0', 'a0 1', 'a1 2'],
  )
  t.equal(later(FIRST, 'a', MAX_HISTORY, (fork) => fork).history.length, MAX_HISTORY)
  t.equal(later(FIRST, 'a', MANY, (fork) => fork).history.length, MAX_HISTORY)
  t.end()
})

void t.test(
  'a line that others left at the same checkpoint is known however many they are',
  (t) => {
    // A primary alone, again and again, while its secondary stays where it was.
    const held = later(FIRST, 'a', 4, (fork) => fork + 1)
    const ours = later(held, 'b', MANY, () => 7)
    t.equal(ours.history.length, MAX_HISTORY)
    t.match(relate(ours, held), { kind: 'ahead', since: [{ generation: 'a3', checkpoint: 7 }] })
    t.same(relate(held, ours), { kind: 'behind' })
    const promoted = forked(held, 'p', 7, 'promote')
    t.match(relate(ours, promoted), {
      kind: 'parted',
      ours: [{ generation: 'a3', by: 'write' }],
      theirs: [{ generation: 'a3', by: 'promote' }],
    })
    t.end()
  },
)

void t.test('the latest of such lines are known as well', (t) => {
  const ours = later(FIRST, 'b', MANY, () => 0)
  const last = ours.history.at(-1)?.generation ?? null
  const peer: Lineage = { generation: last, history: [] }
  t.match(relate(ours, peer), { kind: 'ahead', since: [{ generation: last }] })
  t.end()
})

void t.test('a line that was left by a promote is not the first to be forgotten', (t) => {
  const promoted = forked(
    later(FIRST, 'a', 2, () => 0),
    'p',
    0,
    'promote',
  )
  const ours = later(promoted, 'b', MANY, () => 0)
  t.match(relate(ours, { generation: 'a1', history: [] }), {
    kind: 'ahead',
    since: [{ generation: 'a1', by: 'promote' }],
  })
  t.end()
})

void t.test('replicas of one origin are no strangers, whatever was forgotten between', (t) => {
  const held = later(FIRST, 'a', 4, (fork) => fork)
  const ours = later(held, 'b', MANY, (fork) => 10 + fork)
  const relation = relate(ours, held)
  t.match(relation, {
    kind: 'parted',
    surely: false,
    ours: [{ generation: 'g0' }],
    theirs: [{ generation: 'g0' }],
  })
  t.match(relate(held, ours), { kind: 'parted', surely: false }, 'seen from either side')
  t.match(relate(held, forked(FIRST, 'c', 0, 'promote')), { kind: 'parted', surely: true })
  t.same(
    relate(
      ours,
      later({ generation: 'h0', history: [] }, 'd', MANY, (fork) => fork),
    ),
    {
      kind: 'unrelated',
    },
  )
  t.end()
})
