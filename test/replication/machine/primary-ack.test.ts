/** What a primary asks its secondary to acknowledge, and when it may do without. */

import t from 'tap'

import { ACKS, type Ack } from '../../../replication/group.ts'
import type { PrimaryInput } from '../../../replication/machine/primary-io.ts'
import type { PrimaryMachine } from '../../../replication/machine/primary.ts'
import {
  CONNECTED,
  down,
  hello,
  linkUp,
  newMachine,
  ready,
  tell,
  type Step,
} from './primary-stories.ts'

const ABLE = { features: ['acknowledge'], durable: true }
const configure = (ack: Ack): PrimaryInput => ({
  type: 'configure',
  ...{ onLinkLoss: undefined, intervalMs: undefined, ack },
})

/** What a machine asks for, as it is sent. */
function levels(machine: PrimaryMachine, ...inputs: PrimaryInput[]): number[] {
  return inputs
    .flatMap((input) => machine.step(input))
    .flatMap((effect) =>
      effect.type === 'send' && effect.frame.type === 'acknowledge' ? [effect.frame.position] : [],
    )
}

void t.test('a primary asks for what it needs, as soon as it is followed', (t) => {
  for (const [level, ack] of ACKS.entries()) {
    const machine = newMachine({}, { ack })
    const asked = levels(machine, linkUp, hello(ABLE), ready)
    t.same(asked, ack === 'sent' ? [] : [level], ack)
    t.equal(machine.protection, 'protected')
  }
  t.end()
})

void t.test('what it needs can be changed, and holds on the next link', (t) => {
  const machine = newMachine()
  t.same(levels(machine, linkUp, hello(ABLE), ready), [])
  t.same(levels(machine, configure('durable'), configure('sent'), configure('received')), [2, 0, 1])
  t.equal(machine.ack, 'received')
  t.same(levels(machine, down('it broke'), configure('durable')), [], 'nobody is there to be asked')
  t.same(levels(machine, linkUp, hello(ABLE)), [2])
  t.end()
})

void t.test('a secondary that cannot do it is refused, and so is the change', (t) => {
  const OLD = /too old/
  const FORGETFUL = /durability=memory/
  for (const [ack, able, reason] of [
    ['received', { features: [], durable: true }, OLD],
    ['durable', { features: [], durable: true }, OLD],
    ['durable', { features: ['acknowledge'], durable: false }, FORGETFUL],
  ] as const) {
    const machine = newMachine({}, { ack })
    machine.step(linkUp)
    machine.step(hello(able))
    t.match(machine.reason, reason)
    const other = newMachine()
    for (const input of [linkUp, hello(able), ready]) other.step(input)
    t.equal(other.protection, 'protected')
    t.match(other.ackObjection(ack), reason)
    t.equal(other.ackObjection('sent'), undefined)
    other.step(down('it broke'))
    t.equal(other.ackObjection(ack), undefined, 'the next secondary may be able')
  }
  t.end()
})

void t.test('writes need the secondary where a lost link freezes them', (t) => {
  const needs = (settings: Parameters<typeof newMachine>[1], steps: readonly Step[]): boolean => {
    const machine = newMachine({}, settings)
    tell(t, JSON.stringify(settings), machine, steps)
    return machine.needsAck
  }
  t.notOk(needs({ onLinkLoss: 'freeze', ack: 'sent' }, CONNECTED))
  t.notOk(needs({ onLinkLoss: 'continue', ack: 'sent' }, CONNECTED))
  for (const ack of ['received', 'durable'] as const) {
    for (const [settings, expected] of [
      [{ onLinkLoss: 'continue' }, false],
      [{ onLinkLoss: 'freeze' }, true],
      [{ onLinkLoss: 'continue', fences: true }, true],
    ] as const) {
      const machine = newMachine({}, { ...settings, ack })
      for (const input of [linkUp, hello(ABLE), ready]) machine.step(input)
      t.equal(machine.needsAck, expected)
      machine.step(down('it broke'))
      t.equal(machine.needsAck, expected)
      machine.step({ ...configure(ack), onLinkLoss: 'continue' } as PrimaryInput)
      t.notOk(machine.needsAck, 'an operator has decided')
    }
  }
  t.end()
})

void t.test('a secondary that gets a copy is not waited for', (t) => {
  const machine = newMachine({}, { onLinkLoss: 'freeze', ack: 'durable' })
  machine.step(linkUp)
  t.ok(machine.needsAck)
  machine.step(hello({ ...ABLE, generation: null }))
  t.notOk(machine.needsAck)
  t.end()
})
