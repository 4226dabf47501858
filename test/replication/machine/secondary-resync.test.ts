/** How a secondary comes to the state of a primary that it was away from: its line, its changes, and copies in parts. */

import t from 'tap'

import type { Hello } from '../../../replication/machine/handshake.ts'
import {
  committed,
  describe,
  down,
  greeting,
  hello,
  marker,
  newMachine,
  PROTECTED,
  RESYNCING,
  synced,
  tell,
} from './secondary-stories.ts'

/** Two of a primary that was promoted elsewhere after checkpoint 4. */
const PROMOTED: Partial<Hello> = {
  ...{ generation: 'p1', checkpoint: 4, announced: null, term: 2 },
  history: [{ generation: 'g1', checkpoint: 4, by: 'promote' }],
}

void t.test('a secondary is what it remembers', (t) => {
  const machine = newMachine({ role: 'secondary', term: 3, checkpoint: 7 })
  t.same([machine.role, machine.committed, machine.term], ['secondary', 7, 3])
  tell(t, 'remembered', machine, [
    [hello(1, { checkpoint: 6, announced: 9, term: 3 }), greeting(1, '7/7')],
    [synced(), [PROTECTED]],
  ])
  t.equal(newMachine({ role: 'primary' }).role, 'secondary', 'and a secondary in any case')
  t.end()
})

void t.test(
  'an old primary tells what it changed, and forgets it with the next checkpoint',
  (t) => {
    const machine = newMachine({ checkpoint: 3, wrote: true })
    tell(t, 'an old primary', machine, [
      [hello(1, PROMOTED), greeting(1, '3/3')],
      [marker(5), ['commit 5 as secondary of g1+p1 at 5 in term 2']],
      [committed(5), ['forget-changes', '1: send done 5', 'CHECKPOINT 5']],
      [synced(), [PROTECTED]],
      [marker(6), ['commit 6 as secondary of g1+p1 at 6 in term 2']],
      [committed(6), ['1: send done 6', 'CHECKPOINT 6']],
    ])
    t.same([machine.state.wrote, machine.state.generation], [false, 'p1'])
    t.end()
  },
)

void t.test('until the next commit it is what it was', (t) => {
  const machine = newMachine({ checkpoint: 3, wrote: true })
  machine.step(hello(1, PROMOTED))
  t.match(machine.state, { generation: 'g1', wrote: true, checkpoint: 3, consistent: true })
  machine.step(down(1))
  t.match(machine.state, { generation: 'g1', wrote: true, checkpoint: 3, consistent: true })
  t.end()
})

void t.test('between the parts of a copy it is a mixture, and nobody is told of them', (t) => {
  const machine = newMachine({ generation: null })
  const waiting = { type: 'await-checkpoint', nowMs: 0, request: 1, timeoutMs: 1000 } as const
  tell(t, 'a copy', machine, [
    [
      hello(1, { checkpoint: 4, announced: 4 }),
      ['1: send hello from s on nothing at 0/0', '1: tell changes', 'LINK up', RESYNCING],
    ],
    [waiting, []],
    [marker(5, 1, true), ['commit 5 as secondary of g1 at 5 in term 1!']],
    [committed(5), ['1: send done 5']],
    [
      down(1),
      [
        'discard',
        '#1 failed: LINK_LOST: no checkpoint is known to be committed: cut',
        'LINK down: cut',
        'PROTECTION inconsistent: cut',
      ],
    ],
    [hello(2, { checkpoint: 5, announced: 5 }), greeting(2, '5/5')],
    [marker(6, 2), ['commit 6 as secondary of g1 at 6 in term 1']],
    [committed(6), ['forget-changes', '2: send done 6', 'CHECKPOINT 6']],
    [synced(2), [PROTECTED]],
  ])
  t.equal(machine.consistent, true)
  t.end()
})

void t.test("an operator's choice is told to the primary, until it has been carried out", (t) => {
  const machine = newMachine({
    ...{ generation: 'g2', checkpoint: 4, wrote: true },
    history: [{ generation: 'g1', checkpoint: 4, by: 'write' }],
  })
  const refused = machine.step(hello(1, PROMOTED)).map(describe)
  t.match(refused[0], /^1: send refuse split/)
  machine.step({ type: 'discard', whose: 'local' })
  t.match(machine.step(hello(2, PROMOTED)).map(describe), [/^2: send hello/, '2: tell changes'])
  machine.step(marker(5, 2))
  t.match(machine.step(committed(5)).map(describe)[0], 'forget-changes')
  machine.step(down(2))
  const stranger = machine.step(hello(3, { generation: 'g9' })).map(describe)
  t.match(stranger[0], /^3: send refuse history/, 'a choice holds once')
  t.end()
})
