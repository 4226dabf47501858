import t from 'tap'

import { decodeHello, FEATURES } from '../../../replication/machine/handshake.ts'
import {
  checkpoint,
  CONNECTED,
  describe,
  done,
  down,
  FIRST,
  GREETED,
  GREETING,
  HEARING,
  hello,
  linkUp,
  newMachine,
  ready,
  refused,
  resynced,
  SECONDARY,
  SENDING,
  tell,
  tick,
  type Step,
} from './primary-stories.ts'

const STORIES: readonly (readonly [story: string, steps: readonly Step[]])[] = [
  ['a pair that is equal is protected once the secondary has said so', CONNECTED],
  [
    'a checkpoint is done when its own number is reported',
    [
      ...CONNECTED,
      ['write', 0, true],
      [checkpoint(1, 10), ['send checkpoint 1']],
      [checkpoint(2, 11), ['send checkpoint 2']],
      [done(1, 13), ['CHECKPOINT 1', '#1 done: 1, 512 bytes, 3000 us']],
      [done(2, 14), ['CHECKPOINT 2', '#2 done: 2, 0 bytes, 3000 us']],
    ],
  ],
  [
    'a number that is not awaited ends the link',
    [
      ...CONNECTED,
      [checkpoint(1), ['send checkpoint 1']],
      [
        done(2),
        [
          'close: the peer reported checkpoint 2 as done; awaited: 1',
          '#1 failed: LINK_LOST: checkpoint 1 is not known to be committed: the peer reported checkpoint 2 as done; awaited: 1',
          'LINK down: the peer reported checkpoint 2 as done; awaited: 1',
          'PROTECTION unprotected: the peer reported checkpoint 2 as done; awaited: 1',
        ],
      ],
    ],
  ],
  [
    'a checkpoint without a secondary fails at once',
    [
      [
        checkpoint(1),
        ['#1 failed: LINK_LOST: there is no secondary to checkpoint to (connecting)'],
      ],
      GREETING,
      [
        checkpoint(2),
        ['#2 failed: LINK_LOST: there is no secondary to checkpoint to (connecting)'],
      ],
    ],
  ],
  [
    'what changed before the first connection is sent before any checkpoint',
    [
      ['write', 0, false],
      GREETING,
      ['write', 8192, false],
      GREETED,
      ['write', 12288, false],
      [ready, ['resync 1', SENDING]],
      ['write', 4096, true],
      [checkpoint(1), []],
      [resynced(0, 1), []],
      [resynced(1, 1), ['send synced', 'send checkpoint 1', 'PROTECTION protected']],
      [done(1, 2), ['CHECKPOINT 1', '#1 done: 1, 512 bytes, 2000 us']],
    ],
  ],
  [
    'a checkpoint that is overdue fails, and counts all the same when it comes',
    [
      ...CONNECTED,
      ['write', 0, true],
      [checkpoint(1, 0, 50), ['send checkpoint 1']],
      [tick(49), []],
      [
        tick(50),
        [
          '#1 failed: TIMEOUT: checkpoint 1 was not confirmed in time; it may still be committed later',
        ],
      ],
      [tick(51), []],
      [done(1, 60), ['CHECKPOINT 1']],
    ],
  ],
  [
    'a link that is lost fails what waits, and its confirmations come with the next hello',
    [
      ...CONNECTED,
      ['write', 0, true],
      [checkpoint(1), ['send checkpoint 1']],
      ['write', 4096, true],
      [checkpoint(2), ['send checkpoint 2']],
      [
        down('cut'),
        [
          '#1 failed: LINK_LOST: checkpoint 1 is not known to be committed: cut',
          '#2 failed: LINK_LOST: checkpoint 2 is not known to be committed: cut',
          'LINK down: cut',
          'PROTECTION unprotected: cut',
        ],
      ],
      [down('again'), []],
      [linkUp, ['send hello from p on g1 at 0/2']],
      [hello({ checkpoint: 1, announced: 1 }), ['LINK up', HEARING]],
      [ready, ['resync 2', SENDING]],
    ],
  ],
  [
    'a peer that is silent is given up, one that speaks is not',
    [
      ...CONNECTED,
      [tick(99), []],
      [tick(100), ['send heartbeat']],
      [{ type: 'heartbeat', nowMs: 300 }, []],
      [{ type: 'pressure', nowMs: 400, bytes: 3, limit: 4 }, ['PRESSURE 3 of 4']],
      [tick(899), ['send heartbeat']],
      [
        tick(900),
        [
          'close: the peer was silent for 500 ms',
          'LINK down: the peer was silent for 500 ms',
          'PROTECTION unprotected: the peer was silent for 500 ms',
        ],
      ],
      [tick(2000), []],
    ],
  ],
  [
    'a pair whose histories do not fit is refused by the primary too',
    [
      GREETING,
      [
        hello({ generation: 'g9' }),
        ((reason) => [`close: refused: ${reason}`, `PROTECTION unprotected: refused: ${reason}`])(
          'the two sides hold data that never had anything to do with each other; choose whose to give up with connect --discard local or remote',
        ),
      ],
    ],
  ],
  [
    'a refusal is told, and a split brain deposes the side of the lower term only',
    [
      GREETING,
      [refused({}), ['close: refused: because', 'PROTECTION unprotected: refused: because']],
      ['write', 0, false],
      GREETING,
      [refused({ code: 'split', term: 1 }), ['close: refused: because']],
      ['write', 0, false],
      GREETING,
      [
        refused({ code: 'split', term: 2 }),
        [
          'ERROR deposed: because; this copy acknowledges no more writes',
          'close: refused: because',
        ],
      ],
    ],
  ],
  [
    'a second hello ends the link',
    [
      ...CONNECTED,
      [
        hello(),
        [
          'close: the peer sent a second hello',
          'LINK down: the peer sent a second hello',
          'PROTECTION unprotected: the peer sent a second hello',
        ],
      ],
    ],
  ],
  [
    'a disk that failed ends protection; without a link there is none to end',
    [
      [{ type: 'disk-failed', reason: 'broken' }, []],
      ...CONNECTED,
      [
        { type: 'disk-failed', reason: 'broken' },
        ['close: broken', 'LINK down: broken', 'PROTECTION unprotected: broken'],
      ],
    ],
  ],
  [
    'replication that is switched off says so',
    [
      ...CONNECTED,
      [
        { type: 'set-replicating', on: false },
        [
          'close: replication was switched off here: connect switches it on again',
          'LINK down: replication was switched off here: connect switches it on again',
          'PROTECTION unprotected: replication was switched off here: connect switches it on again',
        ],
      ],
      [{ type: 'set-replicating', on: true }, []],
    ],
  ],
  [
    'replication that is switched off greets nobody, also on a connection that was made before, until it is switched on',
    [
      [
        { type: 'set-replicating', on: false },
        ['PROTECTION unprotected: replication was switched off here: connect switches it on again'],
      ],
      [linkUp, ['close: replication was switched off here: connect switches it on again']],
      [{ type: 'set-replicating', on: true }, []],
      ...CONNECTED,
    ],
  ],
]

void t.test('a primary', (t) => {
  for (const [story, steps] of STORIES) tell(t, story, newMachine(), steps)
  t.end()
})

void t.test('a primary that a guest wrote to is deposed, and acknowledges no more writes', (t) => {
  const machine = newMachine()
  machine.writing(0, 0, 512)
  machine.step(linkUp)
  t.equal(machine.writeObjection, undefined)
  const deposed = refused({ code: 'deposed', term: 2 })
  t.same(machine.step(deposed).map(describe), [
    'ERROR deposed: because; this copy acknowledges no more writes',
    'close: refused: because',
    'PROTECTION unprotected: refused: because',
  ])
  t.match(machine.writeObjection, /deposed/)
  t.equal(machine.heals, false, 'an operator has to stop its guest')
  machine.step(linkUp)
  t.same(machine.step(deposed).map(describe), ['close: refused: because'], 'it is said once')
  t.end()
})

void t.test('a write is dirty until an epoch with its end is committed', (t) => {
  const machine = newMachine()
  const dirty = (): number => machine.dirtyBytes(0)
  for (const input of [linkUp, hello(), ready]) machine.step(input)
  machine.writing(0, 0, 512)
  t.equal(dirty(), 4096, 'from before it begins')
  machine.step(checkpoint(1))
  machine.written(0, 0, 512)
  machine.step(done(1))
  t.equal(dirty(), 4096, 'a checkpoint that it began before and ended after does not have it')
  machine.writing(0, 8192, 512)
  machine.step(checkpoint(2))
  machine.step(done(2))
  t.equal(dirty(), 0, 'what is under way is not in the map then: it is marked again at its end')
  machine.writeFailed(0, 8192, 512)
  t.equal(dirty(), 4096, 'or when it fails')
  t.end()
})

void t.test('a resync finds what is dirty, cut to the size of the disk', (t) => {
  const disks = [{ name: 'a', size: 4096 + 512 }]
  const machine = newMachine({}, { disks })
  machine.writing(0, 4096, 512)
  t.same(machine.nextDirty(0, 0, 1 << 20, 0), { at: 4096, length: 512 })
  t.equal(machine.nextDirty(0, 4608, 1 << 20, 0), undefined)
  machine.writing(0, 0, 512)
  t.equal(machine.dirtyBytes(0), 4608)
  t.end()
})

void t.test("a primary's hello says what it knows", (t) => {
  const machine = newMachine()
  const [effect] = machine.step(linkUp)
  const payload = effect?.type === 'send' ? effect.frame.payload : Buffer.alloc(0)
  const { checkpoint: at, generation, history } = FIRST
  t.same(decodeHello(payload), {
    ...SECONDARY,
    ...{ role: 'primary', replica: 'p', wrote: true, capacity: 0, features: FEATURES },
    ...{ checkpoint: at, generation, history },
  })
  t.end()
})
