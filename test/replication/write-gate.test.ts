/** What the writes of a primary's guests wait for. */

import t from 'tap'

import { Fault } from '../../core/fault.ts'
import type { PrimaryMachine } from '../../replication/machine/primary.ts'
import { WriteGate } from '../../replication/write-gate.ts'

function open(): { gate: WriteGate; machine: { frozen: boolean; mustFork: boolean } } {
  const machine = { frozen: false, mustFork: false, state: () => ({}) }
  const gate = new WriteGate(machine as unknown as PrimaryMachine, {
    fork: () => (machine.mustFork = false),
    persist: () => undefined,
  })
  return { gate, machine }
}

const turn = (): Promise<void> => new Promise(setImmediate)

void t.test('frozen is frozen: no write begins, and none is acknowledged', async (t) => {
  const { gate, machine } = open()
  t.same([gate.ready(), gate.thawed()], [undefined, undefined], 'nothing is held up otherwise')
  machine.frozen = true
  const passed: string[] = []
  const beginning = Promise.resolve(gate.ready()).then(() => passed.push('began'))
  const ending = Promise.resolve(gate.thawed()).then(() => passed.push('acknowledged'))
  gate.open()
  await turn()
  t.same(passed, [], 'nothing passes')
  machine.frozen = false
  gate.open()
  await Promise.all([beginning, ending])
  t.same(passed.sort(), ['acknowledged', 'began'], 'and each goes on once when it is over')
})

void t.test('what waits when the role ends is refused', async (t) => {
  const { gate, machine } = open()
  machine.frozen = true
  const waiting = t.rejects(Promise.resolve(gate.ready()), { code: 'SHUTDOWN' })
  gate.end(new Fault('SHUTDOWN', 'the role ends'))
  await waiting
  t.throws(() => gate.ready(), { code: 'SHUTDOWN' })
})
