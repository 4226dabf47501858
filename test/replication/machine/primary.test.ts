import t from 'tap'

import { decodeHello, type Hello, type Refusal } from '../../../replication/machine/handshake.ts'
import type { PrimaryEffect, PrimaryInput } from '../../../replication/machine/primary-io.ts'
import { PrimaryMachine } from '../../../replication/machine/primary.ts'
import { describeEvent, describeFrame } from './stories.ts'

const SIZE = 64 * 1024
const HELLO: Hello = {
  protocol: { min: 1, max: 1 },
  group: 'vm',
  mode: 'colo',
  role: 'secondary',
  incarnation: 's1',
  partner: null,
  checkpoint: 0,
  announced: 0,
  term: 1,
  disks: [{ name: 'a', size: SIZE }],
  capacity: 1024 * 1024,
  durable: false,
}

function describe(effect: PrimaryEffect): string {
  switch (effect.type) {
    case 'send':
      return `send ${describeFrame(effect.frame)}`
    case 'close-link':
      return `close: ${effect.reason}`
    case 'checkpoint-done':
      return `#${effect.request} done: ${effect.result.checkpoint}, ${effect.result.bytes} bytes, ${effect.result.pauseUs} us`
    case 'checkpoint-failed':
      return `#${effect.request} failed: ${effect.code}: ${effect.reason}`
    case 'resync':
      return `resync ${effect.session} from ${effect.committed}`
    case 'event':
      return describeEvent(effect.event)
  }
}

/** A write of the guest, from its start to its end; or what is given to the machine and what it does. */
type Step =
  readonly ['write', at: number, forwarded: boolean] | readonly [PrimaryInput, readonly string[]]

const linkUp: PrimaryInput = { type: 'link-up', nowMs: 0, peer: 'peer' }
const hello = (fields: Partial<Hello> = {}): PrimaryInput => ({
  type: 'hello',
  nowMs: 0,
  hello: { ...HELLO, ...fields },
})
const refused = (fields: Partial<Refusal>): PrimaryInput => ({
  type: 'refused',
  nowMs: 0,
  refusal: { code: 'history', reason: 'because', term: 1, ...fields },
})
const checkpoint = (request: number, nowMs = 0, timeoutMs = 1000): PrimaryInput => ({
  type: 'checkpoint',
  request,
  nowMs,
  timeoutMs,
})
const done = (number: number, nowMs = 0): PrimaryInput => ({
  type: 'done',
  checkpoint: number,
  commitUs: 5,
  nowMs,
})
const tick = (nowMs: number): PrimaryInput => ({ type: 'tick', nowMs })
const down = (reason: string): PrimaryInput => ({ type: 'link-down', reason })

const GREETING: Step = [linkUp, ['send hello from p1 of nobody at 0/0']]
const CONNECTED: readonly Step[] = [GREETING, [hello(), ['LINK up', 'PROTECTION protected']]]

const STORIES: readonly (readonly [story: string, steps: readonly Step[]])[] = [
  ['a fresh pair is protected at once', CONNECTED],
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
      [
        hello(),
        [
          'LINK up',
          'resync 1 from 0',
          'PROTECTION resyncing: sending what changed while the secondary was away',
        ],
      ],
      ['write', 4096, true],
      [checkpoint(1), []],
      [{ type: 'resynced', session: 0, nowMs: 1 }, []],
      [{ type: 'resynced', session: 1, nowMs: 1 }, ['send checkpoint 1', 'PROTECTION protected']],
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
      [linkUp, ['send hello from p1 of s1 at 0/2']],
      [
        hello({ partner: 'p1', checkpoint: 1, announced: 1 }),
        [
          'LINK up',
          'resync 2 from 1',
          'PROTECTION resyncing: sending what changed while the secondary was away',
        ],
      ],
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
        hello({ partner: 'p0' }),
        [
          "close: refused: the primary was restarted, so what it changed since the last checkpoint is not known; start the pair anew from identical images, with the folder of the secondary's journal moved away",
          "PROTECTION unprotected: refused: the primary was restarted, so what it changed since the last checkpoint is not known; start the pair anew from identical images, with the folder of the secondary's journal moved away",
        ],
      ],
    ],
  ],
  [
    'a refusal is told, and deposes only with a higher term',
    [
      GREETING,
      [refused({}), ['close: refused: because', 'PROTECTION unprotected: refused: because']],
      ['write', 0, false],
      [linkUp, ['send hello from p1 of nobody at 0/0']],
      [refused({ code: 'deposed' }), ['close: refused: because']],
      ['write', 0, false],
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
          'close: replication was switched off',
          'LINK down: replication was switched off',
          'PROTECTION unprotected: replication was switched off',
        ],
      ],
      [{ type: 'set-replicating', on: true }, []],
    ],
  ],
]

function newMachine(): PrimaryMachine {
  return new PrimaryMachine({
    group: 'vm',
    mode: 'colo',
    incarnation: 'p1',
    disks: HELLO.disks,
    heartbeatMs: 100,
    timeoutMs: 500,
  })
}

void t.test('a primary', (t) => {
  for (const [story, steps] of STORIES) {
    const machine = newMachine()
    for (const [index, step] of steps.entries()) {
      if (step[0] === 'write') {
        machine.writing(0, step[1], 512)
        t.equal(machine.written(0, step[1], 512), step[2], `${story}: step ${index}: forwarded`)
      } else t.same(machine.step(step[0]).map(describe), step[1], `${story}: step ${index}`)
    }
  }
  t.end()
})

void t.test('a deposed primary refuses writes and does not connect again', (t) => {
  const machine = newMachine()
  machine.step(linkUp)
  t.equal(machine.writeObjection, undefined)
  t.same(machine.step(refused({ code: 'deposed', term: 2 })).map(describe), [
    'ERROR deposed: because; this copy acknowledges no more writes',
    'close: refused: because',
    'PROTECTION unprotected: refused: because',
  ])
  t.match(machine.writeObjection, /deposed/)
  t.equal(machine.replicating, false)
  machine.step({ type: 'set-replicating', on: true })
  t.equal(machine.replicating, false, 'whatever the toolstack says')
  t.end()
})

void t.test('a write is dirty until an epoch with its end is committed', (t) => {
  const machine = newMachine()
  const dirty = (): number => machine.dirtyBytes(0)
  machine.step(linkUp)
  machine.step(hello())
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
  const machine = new PrimaryMachine({
    group: 'vm',
    mode: 'colo',
    incarnation: 'p1',
    disks,
    heartbeatMs: 100,
    timeoutMs: 500,
  })
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
  t.same(decodeHello(payload), { ...HELLO, role: 'primary', incarnation: 'p1', capacity: 0 })
  t.end()
})
