/** Whose line of data a primary holds: forks, calls of another primary, freezing; and what may be set while it runs. */

import t from 'tap'

import type { Hello } from '../../../replication/machine/handshake.ts'
import type { PrimaryInput } from '../../../replication/machine/primary-io.ts'
import {
  checkpoint,
  CONNECTED,
  describe,
  done,
  down,
  GREETED,
  GREETING,
  HEARING,
  hello,
  linkUp,
  newMachine,
  ready,
  SECONDARY,
  SENDING,
  SETTLING,
  tell,
  tick,
  resynced,
} from './primary-stories.ts'

const LEFT_BEHIND =
  'this side was deposed: the other one leads; stop the guest here, then demote this side'

const fork = (generation: string): PrimaryInput => ({ type: 'fork', generation })
const configure = (
  fields: Partial<Extract<PrimaryInput, { type: 'configure' }>>,
): PrimaryInput => ({
  type: 'configure',
  ...{ onLinkLoss: undefined, intervalMs: undefined, ack: undefined },
  ...fields,
})
/** Another primary, which was promoted after the line of this one. */
const other = (fields: Partial<Hello> = {}): PrimaryInput => ({
  type: 'called',
  hello: {
    ...SECONDARY,
    ...{ role: 'primary', replica: 'o', generation: 'p1', term: 2, announced: null, wrote: true },
    history: [{ generation: 'g1', checkpoint: 0, by: 'promote' }],
    ...fields,
  },
})

void t.test('a line that nobody else holds needs no fork', (t) => {
  const machine = newMachine()
  t.equal(machine.mustFork, false)
  machine.step(linkUp)
  t.equal(machine.mustFork, false)
  t.end()
})

void t.test('a line that a secondary has met is left by the first write without one', (t) => {
  const machine = newMachine()
  tell(t, 'forks', machine, CONNECTED)
  t.equal(machine.mustFork, false, 'the secondary follows')
  tell(t, 'forks', machine, [
    [checkpoint(1), ['send checkpoint 1']],
    [done(1), ['CHECKPOINT 1', '#1 done: 1, 0 bytes, 0 us']],
    [checkpoint(2), ['send checkpoint 2']],
    [
      down('cut'),
      [
        '#2 failed: LINK_LOST: checkpoint 2 is not known to be committed: cut',
        'LINK down: cut',
        'PROTECTION unprotected: cut',
      ],
    ],
  ])
  t.equal(machine.mustFork, true)
  t.same(machine.step(fork('g2')), [])
  t.equal(machine.mustFork, false, 'once')
  t.match(machine.state(false), {
    generation: 'g2',
    history: [{ generation: 'g1', checkpoint: 1, by: 'write' }],
    checkpoint: 1,
    announced: null,
  })
  tell(t, 'forks', machine, [
    ['write', 0, false],
    [linkUp, ['send hello from p on g2 at 1/2']],
    [hello({ checkpoint: 1, announced: 1 }), ['LINK up', HEARING]],
    [ready, ['resync 2', SENDING]],
    [resynced(2), ['send checkpoint 3', SETTLING]],
    [done(3), ['send synced', 'CHECKPOINT 3', 'PROTECTION protected']],
  ])
  t.end()
})

void t.test('a line that was shared in an earlier process is left as well', (t) => {
  const machine = newMachine({ checkpoint: 3, announced: 3 }, { shared: true })
  t.equal(machine.mustFork, true)
  machine.step(linkUp)
  t.equal(machine.mustFork, true, 'while a secondary is being greeted too')
  tell(t, 'a fork during the greeting', machine, [
    [fork('g2'), []],
    [
      hello({ checkpoint: 3, announced: 3 }),
      ((why) => [`close: ${why}`, `PROTECTION unprotected: ${why}`])(
        'a guest wrote while the secondary was being greeted',
      ),
    ],
    [linkUp, ['send hello from p on g2 at 3/3']],
  ])
  t.end()
})

void t.test('a line that a secondary has only begun to get is not left again and again', (t) => {
  const machine = newMachine({ checkpoint: 3, announced: 3 }, { shared: true })
  machine.step(fork('g2'))
  tell(t, 'a link that comes and goes', machine, [
    ['write', 0, false],
    [linkUp, ['send hello from p on g2 at 3/3']],
    [hello({ checkpoint: 3, announced: 3 }), ['LINK up', HEARING]],
    [ready, ['resync 1', SENDING]],
    [down('cut'), ['LINK down: cut', 'PROTECTION unprotected: cut']],
  ])
  t.equal(machine.mustFork, false, 'the secondary has no checkpoint of it')
  tell(t, 'the next time a marker is on its way', machine, [
    [linkUp, ['send hello from p on g2 at 3/3']],
    [hello({ checkpoint: 3, announced: 3 }), ['LINK up', HEARING]],
    [ready, ['resync 2', SENDING]],
    [resynced(2), ['send checkpoint 4', SETTLING]],
    [down('cut'), ['LINK down: cut', 'PROTECTION unprotected: cut']],
  ])
  t.equal(machine.mustFork, true, 'it may be committed, unheard')
  t.end()
})

void t.test('a secondary that joins the line as it is may hold it from then on', (t) => {
  const machine = newMachine()
  tell(t, 'a link that is lost before anything was sent', machine, [
    GREETING,
    GREETED,
    [down('cut'), ['LINK down: cut', 'PROTECTION unprotected: cut']],
  ])
  t.equal(machine.mustFork, true)
  t.end()
})

void t.test('what is remembered at the end in order is exact, and unknown otherwise', (t) => {
  const machine = newMachine()
  tell(t, 'states', machine, [...CONNECTED, [checkpoint(1), ['send checkpoint 1']]])
  t.match(machine.state(false), { role: 'primary', checkpoint: 0, announced: null, wrote: true })
  t.match(machine.state(true), { role: 'primary', checkpoint: 0, announced: 1 })
  const crashed = newMachine({ announced: null })
  t.equal(crashed.state(true).announced, null, 'nobody knows before a secondary tells')
  crashed.step(linkUp)
  crashed.step(hello({ checkpoint: 4, announced: 6 }))
  t.match(crashed.state(true), { checkpoint: 4, announced: 6 })
  tell(t, 'numbers that were used are not used again', crashed, [
    [ready, ['send synced', 'PROTECTION protected']],
    [checkpoint(1), ['send checkpoint 7']],
  ])
  t.end()
})

void t.test('an active copy is a primary when a secondary has all of it', (t) => {
  const machine = newMachine({ role: 'active', term: 2 }, { onLinkLoss: 'freeze' })
  t.same([machine.role, machine.frozen], ['active', false], 'whoever promoted it wants it to serve')
  t.match(machine.status, { protection: 'unprotected', reason: 'active without a secondary' })
  tell(t, 'an active copy', machine, [
    GREETING,
    GREETED,
    [ready, ['send synced', 'ROLE primary in term 2', 'PROTECTION protected']],
  ])
  t.equal(machine.state(false).role, 'primary')
  t.end()
})

const PROMOTED = 'the other side was promoted, or an operator has chosen its data'
const DEPOSED = `ERROR deposed: ${PROMOTED}; this copy acknowledges no more writes`

void t.test('a primary that nobody wrote to follows the one that was promoted', (t) => {
  // What stepping down does is told of after everything that led to it.
  const stories = [
    ['continue', []],
    ['freeze', ['PROTECTION connecting']],
  ] as const
  for (const [onLinkLoss, news] of stories) {
    const machine = newMachine({}, { onLinkLoss })
    tell(t, `called with on-link-loss=${onLinkLoss}`, machine, [
      [
        other(),
        [
          DEPOSED,
          'answer unready in term 1: the other side is becoming a secondary',
          ...news,
          `step down: ${PROMOTED}`,
        ],
      ],
    ])
    t.match(machine.writeObjection, /deposed/)
  }
  t.end()
})

void t.test('a primary that a guest wrote to ends its link, and waits for an operator', (t) => {
  const machine = newMachine()
  tell(t, 'called', machine, [
    ...CONNECTED,
    ['write', 0, true],
    [
      other(),
      [
        DEPOSED,
        'answer unready in term 1: the other side is still a primary: stop its guest, then demote it',
        `close: ${LEFT_BEHIND}`,
        `LINK down: ${LEFT_BEHIND}`,
        `PROTECTION unprotected: ${LEFT_BEHIND}`,
      ],
    ],
    [
      other(),
      [
        'answer unready in term 1: the other side is still a primary: stop its guest, then demote it',
      ],
    ],
  ])
  t.equal(machine.frozen, false)
  t.equal(machine.mustFork, false, 'a write that is refused parts no line')
  t.end()
})

void t.test('a call that fits no history is answered, and changes nothing here', (t) => {
  const machine = newMachine()
  tell(t, 'called', machine, CONNECTED)
  const cases = [
    [{ generation: 'g9', history: [] }, /^answer history in term 1: /],
    [{ generation: 'g1', history: [] }, /^answer configuration .*both sides are primaries/],
    [{ replica: 'p' }, /^answer configuration .*cannot follow itself/],
    [{ group: 'other' }, /^answer configuration .*the groups differ/],
  ] as const
  for (const [fields, answer] of cases) {
    const [first, ...others] = machine.step(other(fields)).map(describe)
    t.match(first, answer)
    t.same(others, [])
  }
  t.equal(machine.writeObjection, undefined)
  t.equal(machine.protection, 'protected')
  t.end()
})

void t.test('of two that have parted, the one of the lower term is deposed', (t) => {
  for (const [term, deposed] of [
    [1, false],
    [2, true],
  ] as const) {
    const machine = newMachine({}, { shared: true })
    machine.step(fork('g2'))
    machine.writing(0, 0, 512)
    const effects = machine.step(other({ term })).map(describe)
    t.match(effects.at(-1), /^answer split in term 1: split brain/)
    t.equal(machine.writeObjection !== undefined, deposed, `term ${term}`)
  }
  t.end()
})

void t.test('an operator chooses whose changes are given up', (t) => {
  const machine = newMachine({}, { shared: true })
  machine.step(fork('g2'))
  machine.writing(0, 0, 512)
  machine.step({ type: 'discard', whose: 'remote' })
  t.match(machine.step(other()).map(describe), [
    'answer deposed in term 1: an operator has given up',
  ])
  machine.step({ type: 'discard', whose: 'local' })
  t.match(machine.step(other()).map(describe), [DEPOSED, /^answer unready/])
  t.end()
})

void t.test('a primary that freezes does so whenever no secondary follows it', (t) => {
  const machine = newMachine({}, { onLinkLoss: 'freeze' })
  const frozen = (is: boolean, when: string): void => {
    t.equal(machine.frozen, is, when)
    t.equal(machine.protection === 'frozen', is, when)
  }
  frozen(true, 'from the start')
  machine.step(linkUp)
  frozen(true, 'while it greets one')
  machine.step(hello())
  frozen(false, 'from the hello on')
  machine.step(ready)
  t.same(machine.step(down('cut')).map(describe), ['LINK down: cut', 'PROTECTION frozen: cut'])
  frozen(true, 'when the link is lost')
  t.same(machine.step(configure({ onLinkLoss: 'continue' })).map(describe), [
    'PROTECTION unprotected: cut',
  ])
  frozen(false, 'not when it is told to go on')
  t.equal(machine.mustFork, true, 'but the line is left first')
  machine.step(configure({ onLinkLoss: 'freeze' }))
  frozen(true, 'nor for ever')
  machine.writing(0, 0, 512)
  machine.step(other())
  t.equal(machine.frozen, false, 'a deposed one refuses instead')
  t.end()
})

void t.test(
  'a primary checkpoints by itself as often as asked for, if there is something to',
  (t) => {
    const machine = newMachine({}, { intervalMs: 50 })
    tell(t, 'by itself', machine, [
      ...CONNECTED,
      [tick(60), []],
      ['write', 0, true],
      [tick(70), ['send checkpoint 1']],
      ['write', 0, true],
      [tick(130), ['send heartbeat']],
      [done(1, 131), ['CHECKPOINT 1']],
      [tick(132), ['send checkpoint 2']],
      [done(2, 133), ['CHECKPOINT 2']],
      ['write', 0, true],
      [tick(181), []],
      [configure({ intervalMs: 0 }), []],
      [tick(190), []],
      [configure({ intervalMs: 50 }), []],
      [tick(191), ['send checkpoint 3']],
    ])
    t.end()
  },
)
