/** What a primary sends of its disks, whole or in parts, and when the secondary has it. */

import t, { type Test } from 'tap'

import { KiB, MiB } from '../../../core/units.ts'
import type { Hello } from '../../../replication/machine/handshake.ts'
import type { PrimaryMachine } from '../../../replication/machine/primary.ts'
import {
  checkpoint,
  CONNECTED,
  COPYING,
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
  refused,
  resynced,
  SENDING,
  SETTLING,
  tell,
  tick,
  type Step,
} from './primary-stories.ts'

const LARGE = 64 * MiB
const PART = 4 * MiB
/** What a resync reads at a time. */
const CHUNK = 1 * MiB
const DISKS = [{ name: 'a', size: LARGE }]
/** A secondary that knows nothing yet, and has room for parts. */
const EMPTY: Partial<Hello> = { generation: null, disks: DISKS, capacity: 64 * MiB }

/**
 * Sends what a resync from a checkpoint would send; each part is acknowledged at once, and `meanwhile` happens before it is.
 * @returns how often each chunk of the disk was sent, and the markers of the parts
 */
function copy(
  machine: PrimaryMachine,
  committed: number,
  meanwhile: (part: number) => void = () => undefined,
): { sent: number[]; parts: number[] } {
  const sent = Array.from({ length: LARGE / CHUNK }, () => 0)
  const parts: number[] = []
  let run = machine.nextDirty(0, 0, CHUNK, committed)
  while (run !== undefined) {
    const chunk = Math.floor(run.at / CHUNK)
    sent[chunk] = (sent[chunk] ?? 0) + run.length / CHUNK
    if (machine.resent(0, run.at, run.length)) {
      for (const effect of machine.step({ type: 'part-sent' })) {
        if (effect.type !== 'send' || effect.frame.type !== 'checkpoint') continue
        const part = effect.frame.position
        parts.push(part)
        meanwhile(part)
        machine.step(done(part))
      }
    }
    run = machine.nextDirty(0, run.at + run.length, CHUNK, committed)
  }
  return { sent, parts }
}

function copying(): PrimaryMachine {
  const machine = newMachine({}, { disks: DISKS, partBytes: PART })
  for (const input of [linkUp, hello(EMPTY), ready]) machine.step(input)
  return machine
}

const ONCE = Array.from({ length: LARGE / CHUNK }, () => 1)

/** The copy of `machine` is done; the secondary has all of it with the last checkpoint. */
function settle(t: Test, machine: PrimaryMachine, session: number, last: number): void {
  t.same(machine.step(resynced(session)).map(describe), [`send checkpoint ${last}`, SETTLING])
  t.same(machine.step(done(last)).map(describe), [
    'send synced',
    `CHECKPOINT ${last}`,
    'PROTECTION protected',
  ])
}

void t.test('a copy in parts that are acknowledged at once sends everything, once', (t) => {
  const machine = copying()
  const { sent, parts } = copy(machine, 0)
  t.same(sent, ONCE)
  t.equal(parts.length, LARGE / PART)
  t.equal(machine.protection, 'resyncing')
  settle(t, machine, 1, parts.length + 1)
  t.equal(machine.dirtyBytes(0), 0)
  t.end()
})

void t.test('a guest that writes to what a copy has not reached yet takes nothing from it', (t) => {
  const machine = copying()
  const { sent } = copy(machine, 0, (part) => {
    // It is reached when this write is committed long since.
    const at = Math.min(part * PART + 9 * MiB, LARGE - 4 * KiB)
    machine.writing(0, at, 512)
    t.equal(machine.written(0, at, 512), true)
  })
  t.same(sent, ONCE)
  t.end()
})

void t.test('a copy that is broken off goes on with what it had not sent', (t) => {
  const machine = copying()
  const reached = 24 * MiB
  for (let at = 0; at < reached; at += CHUNK) {
    // A part of a block that is not sent yet: its epoch is committed, the rest of the block is not.
    if (at === 17 * MiB) machine.written(0, 28 * MiB, 512)
    if (machine.resent(0, at, CHUNK)) machine.step({ type: 'part-sent' })
  }
  const parts = reached / PART
  for (let part = 1; part < parts; part += 1) machine.step(done(part))
  t.equal(machine.dirtyBytes(0), LARGE - reached + PART, 'the last part was never acknowledged')
  machine.step(down('cut'))
  machine.step(linkUp)
  const had = { ...EMPTY, generation: 'g1', checkpoint: parts - 1, announced: parts }
  machine.step(hello({ ...had, consistent: false }))
  t.same(machine.step(ready).map(describe), ['resync 2', SENDING])
  const { sent } = copy(machine, parts - 1)
  const kept = (reached - PART) / CHUNK
  t.same(
    sent,
    ONCE.map((once, chunk) => (chunk < kept ? 0 : once)),
  )
  t.end()
})

const AGAIN = 'an operator asked for a copy of everything'

/** What is done when a link ends that had been up. */
const ends = (why: string): readonly string[] => [
  `close: ${why}`,
  `LINK down: ${why}`,
  `PROTECTION unprotected: ${why}`,
]

const STORIES: readonly (readonly [story: string, steps: readonly Step[]])[] = [
  [
    'a secondary that knows nothing gets everything, and is protected with the checkpoint after it',
    [
      GREETING,
      [hello({ generation: null }), ['LINK up', HEARING]],
      [ready, ['copy 1', COPYING]],
      [resynced(1), ['send checkpoint 1', SETTLING]],
      ['write', 0, true],
      [checkpoint(1, 5), ['send checkpoint 2']],
      [done(1, 6), ['send synced', 'CHECKPOINT 1', 'PROTECTION protected']],
      [done(2, 7), ['CHECKPOINT 2', '#1 done: 2, 512 bytes, 2000 us']],
    ],
  ],
  [
    'the checkpoint that a copy ends with is the first one that was asked for meanwhile',
    [
      GREETING,
      [hello({ generation: null }), ['LINK up', HEARING]],
      [checkpoint(1), []],
      [ready, ['copy 1', COPYING]],
      [checkpoint(2), []],
      [resynced(1, 1), ['send checkpoint 1', 'send checkpoint 2', SETTLING]],
      [
        done(1, 2),
        ['send synced', 'CHECKPOINT 1', '#1 done: 1, 0 bytes, 2000 us', 'PROTECTION protected'],
      ],
      [done(2, 2), ['CHECKPOINT 2', '#2 done: 2, 0 bytes, 2000 us']],
    ],
  ],
  [
    'a request whose time is over before the copy is, fails, and the copy has its checkpoint all the same',
    [
      GREETING,
      [hello({ generation: null }), ['LINK up', HEARING]],
      [ready, ['copy 1', COPYING]],
      [checkpoint(1, 0, 50), []],
      [tick(50), ['#1 failed: TIMEOUT: the resync took longer than the time allowed']],
      [resynced(1, 60), ['send checkpoint 1', SETTLING]],
      [done(1, 61), ['send synced', 'CHECKPOINT 1', 'PROTECTION protected']],
    ],
  ],
  [
    'a request whose time is over as the copy ends fails, and the copy has its checkpoint all the same',
    [
      GREETING,
      [hello({ generation: null }), ['LINK up', HEARING]],
      [ready, ['copy 1', COPYING]],
      [checkpoint(1, 0, 50), []],
      [
        resynced(1, 60),
        [
          '#1 failed: TIMEOUT: the resync took longer than the time allowed',
          'send checkpoint 1',
          SETTLING,
        ],
      ],
      [done(1, 61), ['send synced', 'CHECKPOINT 1', 'PROTECTION protected']],
    ],
  ],
  [
    'a secondary that is a mixture is not protected before the next checkpoint, though nothing has to be sent',
    [
      GREETING,
      [hello({ consistent: false }), ['LINK up', HEARING]],
      [ready, ['send checkpoint 1', SETTLING]],
      [done(1), ['send synced', 'CHECKPOINT 1', 'PROTECTION protected']],
    ],
  ],
  [
    'what the secondary changed by itself is sent',
    [
      GREETING,
      GREETED,
      [{ type: 'changed', nowMs: 0, disk: 0, at: 4096, length: 4096 }, []],
      [ready, ['resync 1', SENDING]],
    ],
  ],
  [
    'what the secondary tells out of turn ends the link',
    [
      ...CONNECTED,
      [
        { type: 'changed', nowMs: 0, disk: 0, at: 4096, length: 4096 },
        ends('the secondary told of a change out of turn'),
      ],
      GREETING,
      GREETED,
      [ready, ['send synced', 'PROTECTION protected']],
      [ready, ends('the secondary was ready out of turn')],
    ],
  ],
  [
    'a copy that an operator asks for begins with a new connection, and settles',
    [
      ...CONNECTED,
      [{ type: 'copy-again', comparesFirst: false }, ends(AGAIN)],
      GREETING,
      GREETED,
      [ready, ['resync 2', SENDING]],
      [resynced(2), ['send checkpoint 1', SETTLING]],
      [done(1), ['send synced', 'CHECKPOINT 1', 'PROTECTION protected']],
    ],
  ],
]

void t.test('a copy', (t) => {
  for (const [story, steps] of STORIES) tell(t, story, newMachine(), steps)
  t.end()
})

void t.test('a resync that outgrows the secondary is sent in parts the next time', (t) => {
  const machine = newMachine({}, { partBytes: 8 * KiB })
  const small = { capacity: 64 * KiB }
  const resync = (): void => {
    machine.writing(0, 0, 32 * KiB)
    for (const input of [linkUp, hello(small), ready]) machine.step(input)
  }
  resync()
  t.equal(machine.resent(0, 0, 16 * KiB), false, 'as one epoch at first')
  machine.step(refused({ code: 'overflow' }))
  t.equal(machine.heals, true)
  resync()
  t.equal(machine.resent(0, 0, 4 * KiB), false)
  t.equal(machine.resent(0, 4 * KiB, 4 * KiB), true)
  t.same(machine.step({ type: 'part-sent' }).map(describe), ['send part 1'])
  t.same(machine.step(done(1)).map(describe), [], 'a part is no checkpoint to anybody')
  t.equal(machine.dirtyBytes(0), 24 * KiB)
  t.same(machine.step(resynced(2)).map(describe), ['send checkpoint 2', SETTLING])
  t.end()
})

void t.test('a part is at most a quarter of what the secondary can hold', (t) => {
  const machine = newMachine({}, { partBytes: 1 * MiB })
  const poor = { generation: null, capacity: 16 * KiB }
  for (const input of [linkUp, hello(poor), ready]) machine.step(input)
  t.equal(machine.resent(0, 0, 4 * KiB), true)
  t.end()
})

void t.test('an operator who says that both sides are equal spares the copy', (t) => {
  const machine = newMachine({}, { identical: true })
  machine.step(linkUp)
  machine.step(hello({ generation: null }))
  t.same(machine.step(ready).map(describe), ['send synced', 'PROTECTION protected'])
  t.end()
})
