/** What a primary does with what it knows of its secondary's disks by comparing. */

import t from 'tap'

import { KiB } from '../../../core/units.ts'
import type { Hello } from '../../../replication/machine/handshake.ts'
import type { PrimaryMachine } from '../../../replication/machine/primary.ts'
import type { PrimaryInput } from '../../../replication/machine/primary-io.ts'
import {
  checkpoint,
  CONNECTED,
  describe,
  done,
  down,
  GREETED,
  GREETING,
  hello,
  linkUp,
  newMachine,
  ready,
  resynced,
  SENDING,
  SETTLING,
  tell,
} from './primary-stories.ts'

const COMPARES: Partial<Hello> = { features: ['checksums', 'something newer'] }
const repair: PrimaryInput = { type: 'repair', nowMs: 0 }
const REPAIRING = 'PROTECTION resyncing: sending what a verify has found to differ'

const connected = (): PrimaryMachine => {
  const machine = newMachine()
  for (const input of [linkUp, hello(COMPARES), ready]) machine.step(input)
  return machine
}

void t.test('a resync compares first when it is asked to, and the secondary can', (t) => {
  const again = (comparesFirst: boolean, can: boolean, asked: boolean): string => {
    const machine = newMachine({}, { comparesFirst })
    const greeting = hello(can ? COMPARES : {})
    for (const input of [linkUp, greeting, ready]) machine.step(input)
    machine.step({ type: 'copy-again', comparesFirst: asked })
    for (const input of [linkUp, greeting]) machine.step(input)
    t.equal(machine.peerCompares, can)
    return machine.step(ready).map(describe)[0] ?? ''
  }
  t.equal(again(false, true, false), 'resync 2')
  t.equal(again(false, true, true), 'resync 2, comparing')
  t.equal(again(true, true, false), 'resync 2, comparing')
  t.equal(again(true, false, true), 'resync 2')
  t.end()
})

void t.test('an operator asks for one comparing copy, broken off or not', (t) => {
  const machine = newMachine()
  for (const input of [linkUp, hello(COMPARES), ready]) machine.step(input)
  machine.step({ type: 'copy-again', comparesFirst: true })
  for (const session of [2, 3]) {
    for (const input of [linkUp, hello(COMPARES)]) machine.step(input)
    t.same(machine.step(ready).map(describe), [`resync ${session}, comparing`, SENDING])
    if (session === 2) machine.step(down('reset'))
  }
  machine.foundEqual(0, 0, 64 * KiB)
  t.same(machine.step(resynced(3)).map(describe), ['send checkpoint 1', SETTLING])
  machine.step(done(1))
  machine.step(down('reset'))
  machine.writing(0, 0, 512)
  for (const input of [linkUp, hello({ ...COMPARES, checkpoint: 1, announced: 1 })])
    machine.step(input)
  t.equal(machine.step(ready).map(describe)[0], 'resync 4')
  t.end()
})

void t.test('what was found to be equal is clean with the next commit, and not before', (t) => {
  const machine = newMachine()
  machine.writing(0, 0, 16 * KiB)
  for (const input of [linkUp, hello(COMPARES), ready]) machine.step(input)
  t.equal(machine.unsentBytes(0), 16 * KiB)
  machine.foundEqual(0, 0, 8 * KiB)
  t.same(machine.nextUnsent(0, 0, 64 * KiB), { at: 8 * KiB, length: 8 * KiB })
  t.equal(machine.dirtyBytes(0), 16 * KiB, 'what shows it to be equal may be uncommitted')
  machine.resent(0, 8 * KiB, 8 * KiB)
  machine.step(resynced(1))
  machine.step(checkpoint(1))
  t.equal(machine.dirtyBytes(0), 16 * KiB)
  machine.step(done(1))
  t.equal(machine.dirtyBytes(0), 0)
  t.end()
})

void t.test('what differs is dirty until it is sent, whatever is committed or written', (t) => {
  const machine = connected()
  machine.foundDifferent(0, 16 * KiB, 16 * KiB)
  machine.writing(0, 16 * KiB, 4 * KiB)
  machine.written(0, 16 * KiB, 4 * KiB)
  machine.step(checkpoint(1))
  machine.step(done(1))
  t.equal(machine.dirtyBytes(0), 16 * KiB)
  t.same(machine.step(repair).map(describe), ['resync 2', REPAIRING])
  t.same(machine.nextUnsent(0, 0, 64 * KiB), { at: 16 * KiB, length: 16 * KiB })
  machine.resent(0, 16 * KiB, 16 * KiB)
  t.same(machine.step(checkpoint(2)), [], 'a checkpoint waits for the repair')
  t.same(machine.step(resynced(2)).map(describe), [
    'send synced',
    'send checkpoint 2',
    'PROTECTION protected',
  ])
  machine.step(done(2))
  t.equal(machine.dirtyBytes(0), 0)
  t.end()
})

void t.test(
  'without a secondary a repair waits for the next resync; without a difference it is over',
  (t) => {
    const machine = newMachine()
    tell(t, 'a repair', machine, [
      [repair, []],
      ...CONNECTED,
      [repair, ['send synced']],
      [down('reset'), ['LINK down: reset', 'PROTECTION unprotected: reset']],
      [repair, []],
      GREETING,
      GREETED,
      [repair, []],
    ])
    t.end()
  },
)
