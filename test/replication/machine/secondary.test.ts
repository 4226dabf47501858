import t from 'tap'

import { AssertionFailure } from '../../../core/assert.ts'
import { frame, type Frame } from '../../../replication/machine/frame.ts'
import type { Hello } from '../../../replication/machine/handshake.ts'
import type { SecondaryEffect, SecondaryInput } from '../../../replication/machine/secondary-io.ts'
import { SecondaryMachine } from '../../../replication/machine/secondary.ts'
import { describeEvent, describeFrame } from './stories.ts'

const DISKS = [
  { name: 'a', size: 4096 },
  { name: 'b', size: 8192 },
]
const HELLO: Hello = {
  protocol: { min: 1, max: 1 },
  group: 'vm',
  mode: 'colo',
  role: 'primary',
  incarnation: 'p1',
  partner: null,
  checkpoint: 0,
  announced: 0,
  term: 1,
  disks: DISKS,
  capacity: 0,
  durable: false,
}

function describe(effect: SecondaryEffect): string {
  switch (effect.type) {
    case 'send':
      return `${effect.link}: send ${describeFrame(effect.frame)}`
    case 'close-link':
      return `${effect.link}: close: ${effect.reason}`
    case 'discard':
    case 'activate':
    case 'restart-log':
      return effect.type
    case 'note':
    case 'remember': {
      const { partner, role, term } = effect.state
      return `${effect.type} ${role} of ${partner ?? 'nobody'} in term ${term}`
    }
    case 'commit':
      return `commit ${effect.checkpoint}`
    case 'promoted':
      return `#${effect.request} promoted`
    case 'promote-refused':
      return `#${effect.request} not promoted: ${effect.reason}`
    case 'checkpoint-done':
      return `#${effect.request} done: ${effect.result.checkpoint}, ${effect.result.bytes} bytes`
    case 'checkpoint-failed':
      return `#${effect.request} failed: ${effect.code}: ${effect.reason}`
    case 'event':
      return describeEvent(effect.event)
  }
}

/** All but the notes, which come with each hello. */
const told = (effects: readonly SecondaryEffect[]): string[] =>
  effects.filter(({ type }) => type !== 'note').map(describe)

type Step = readonly [SecondaryInput, readonly string[]]

const hello = (link: number, fields: Partial<Hello> = {}): SecondaryInput => ({
  type: 'hello',
  nowMs: 0,
  link,
  peer: 'peer',
  hello: { ...HELLO, ...fields },
})
const marker = (checkpoint: number, link = 1): SecondaryInput => ({
  type: 'checkpoint',
  nowMs: 0,
  link,
  checkpoint,
})
const committed = (checkpoint: number): SecondaryInput => ({
  type: 'committed',
  checkpoint,
  commitUs: 5,
})
const awaitCheckpoint = (request: number, timeoutMs = 1000): SecondaryInput => ({
  type: 'await-checkpoint',
  nowMs: 0,
  request,
  timeoutMs,
})
const promote = (request: number, force = false): SecondaryInput => ({
  type: 'promote',
  request,
  force,
})
const tick = (nowMs: number): SecondaryInput => ({ type: 'tick', nowMs })
const down = (link: number): SecondaryInput => ({ type: 'link-down', link, reason: 'cut' })
const held = (bytes: number): SecondaryInput => ({ type: 'held', bytes })

const CONNECTED: Step = [
  hello(1),
  ['1: send hello from s1 of p1 at 0/0', 'LINK up', 'PROTECTION protected'],
]
const LOST: Step = [down(1), ['discard', 'LINK down: cut', 'PROTECTION unprotected: cut']]
const PROMOTED: readonly string[] = [
  'activate',
  'ROLE active in term 2',
  '#1 promoted',
  'PROTECTION unprotected: active without a secondary',
]
const REMEMBERED: SecondaryInput = { type: 'remembered' }
const IS_ACTIVE = 'the secondary was promoted and is the active copy'

const STORIES: readonly (readonly [story: string, steps: readonly Step[]])[] = [
  [
    'done is sent when the epoch is committed, not before',
    [
      CONNECTED,
      [marker(1), ['commit 1']],
      [committed(1), ['1: send done 1', 'CHECKPOINT 1']],
      [marker(2), ['commit 2']],
      [committed(2), ['1: send done 2', 'CHECKPOINT 2']],
    ],
  ],
  [
    'a marker that does not go forward ends the link',
    [
      CONNECTED,
      [marker(2), ['commit 2']],
      [committed(2), ['1: send done 2', 'CHECKPOINT 2']],
      [
        marker(2),
        [
          '1: close: the primary announced checkpoint 2 after 2',
          'discard',
          'LINK down: the primary announced checkpoint 2 after 2',
          'PROTECTION unprotected: the primary announced checkpoint 2 after 2',
        ],
      ],
    ],
  ],
  [
    'a commit that outlives its link is told by the next hello only',
    [
      CONNECTED,
      [marker(1), ['commit 1']],
      LOST,
      [
        hello(2, { partner: 's1', announced: 1 }),
        ['2: send hello from s1 of p1 at 0/1', 'LINK up', 'PROTECTION protected'],
      ],
      [committed(1), ['CHECKPOINT 1']],
    ],
  ],
  [
    'a primary that comes back replaces its old link, and nothing of that one counts any more',
    [
      CONNECTED,
      [
        hello(2, { partner: 's1' }),
        [
          '1: close: the primary came back on a new connection',
          'discard',
          'LINK down: the primary came back on a new connection',
          '2: send hello from s1 of p1 at 0/0',
          'LINK up',
        ],
      ],
      [marker(1, 1), []],
      [down(1), []],
      [marker(1, 2), ['commit 1']],
    ],
  ],
  [
    'a stranger is refused and harms nobody',
    [
      CONNECTED,
      [
        hello(2, { incarnation: 'p2' }),
        [
          "2: send refuse history in term 1: the primary was restarted, so what it changed since the last checkpoint is not known; start the pair anew from identical images, with the folder of the secondary's journal moved away",
          "2: close: the primary was restarted, so what it changed since the last checkpoint is not known; start the pair anew from identical images, with the folder of the secondary's journal moved away",
        ],
      ],
      [down(2), []],
      [marker(1), ['commit 1']],
    ],
  ],
  [
    'a lost link discards what was not committed, once',
    [CONNECTED, LOST, [down(1), []], [marker(1), []], [tick(10_000), []]],
  ],
  [
    'a primary that is silent is given up',
    [
      CONNECTED,
      [tick(100), ['1: send heartbeat']],
      [{ type: 'heartbeat', link: 1, nowMs: 400 }, []],
      [{ type: 'heartbeat', link: 2, nowMs: 800 }, []],
      [tick(899), ['1: send heartbeat']],
      [
        tick(900),
        [
          '1: close: the primary was silent for 500 ms',
          'discard',
          'LINK down: the primary was silent for 500 ms',
          'PROTECTION unprotected: the primary was silent for 500 ms',
        ],
      ],
    ],
  ],
  [
    'a promote is refused while the primary lives, unless it is forced',
    [
      CONNECTED,
      [
        promote(1),
        [
          '#1 not promoted: its primary peer is connected and alive; stop the primary first, or use force',
        ],
      ],
      [
        promote(1, true),
        [
          'discard',
          'LINK down: the secondary is being promoted',
          'remember active of p1 in term 2',
          'PROTECTION unprotected: the secondary is being promoted',
        ],
      ],
      [
        REMEMBERED,
        ['1: send refuse deposed in term 2: ' + IS_ACTIVE, '1: close: ' + IS_ACTIVE, ...PROMOTED],
      ],
    ],
  ],
  [
    'a promote after the loss of the primary is taken once, and deposes whoever comes',
    [
      CONNECTED,
      LOST,
      [promote(1), ['discard', 'remember active of p1 in term 2']],
      [REMEMBERED, PROMOTED],
      [promote(2), ['#2 promoted']],
      [promote(3, true), ['#3 promoted']],
      [
        hello(2, { partner: 's1' }),
        ['2: send refuse deposed in term 2: ' + IS_ACTIVE, '2: close: ' + IS_ACTIVE],
      ],
      [awaitCheckpoint(4), ['#4 failed: NOT_PERMITTED: this side is active and has no secondary']],
    ],
  ],
  [
    'a secondary that never met its primary is promoted to a higher term, too',
    [
      [promote(1), ['discard', 'remember active of nobody in term 2']],
      [REMEMBERED, PROMOTED],
    ],
  ],
  [
    'a promote waits for the commits that were begun, and no primary is taken meanwhile',
    [
      CONNECTED,
      [marker(1), ['commit 1']],
      [marker(2), ['commit 2']],
      LOST,
      [promote(1), ['discard']],
      [committed(1), ['CHECKPOINT 1']],
      [promote(2), ['discard']],
      [
        hello(2, { partner: 's1', announced: 2 }),
        [
          '2: send refuse unready in term 1: the secondary is being promoted',
          '2: close: the secondary is being promoted',
        ],
      ],
      [committed(2), ['CHECKPOINT 2', 'remember active of p1 in term 2']],
      [
        REMEMBERED,
        [
          'activate',
          'ROLE active in term 2',
          '#1 promoted',
          '#2 promoted',
          'PROTECTION unprotected: active without a secondary',
        ],
      ],
    ],
  ],
  [
    'a promote that cannot be remembered is refused, and the primary is taken again',
    [
      CONNECTED,
      LOST,
      [promote(1), ['discard', 'remember active of p1 in term 2']],
      [{ type: 'remember-failed', reason: 'disk full' }, ['#1 not promoted: disk full']],
      [
        hello(2, { partner: 's1' }),
        ['2: send hello from s1 of p1 at 0/0', 'LINK up', 'PROTECTION protected'],
      ],
    ],
  ],
  [
    'a log that fails loses what is not committed, and is begun anew for the next hello',
    [
      CONNECTED,
      [marker(1), ['commit 1']],
      [
        { type: 'log-failed', reason: 'disk full' },
        [
          '1: send refuse unready in term 1: disk full',
          '1: close: disk full',
          'discard',
          'LINK down: disk full',
          'PROTECTION unprotected: disk full',
        ],
      ],
      [
        hello(2, { partner: 's1', announced: 1 }),
        ['restart-log', '2: send refuse unready in term 1: disk full', '2: close: disk full'],
      ],
      [{ type: 'log-restarted' }, []],
      [
        hello(3, { partner: 's1', announced: 1 }),
        ['3: send hello from s1 of p1 at 0/0', 'LINK up', 'PROTECTION protected'],
      ],
      [marker(2, 3), ['commit 2']],
      [committed(2), ['3: send done 2', 'CHECKPOINT 2']],
    ],
  ],
  [
    'who waits for a checkpoint is told of the next one, and each is told to one',
    [
      [awaitCheckpoint(1), ['#1 failed: LINK_LOST: no primary is connected (waiting for one)']],
      CONNECTED,
      [awaitCheckpoint(2), []],
      [marker(1), ['commit 1']],
      [committed(1), ['1: send done 1', 'CHECKPOINT 1', '#2 done: 1, 0 bytes']],
      [awaitCheckpoint(3, 50), []],
      [tick(49), []],
      [tick(50), ['#3 failed: TIMEOUT: the primary announced no checkpoint in time']],
      [marker(2), ['commit 2']],
      [committed(2), ['1: send done 2', 'CHECKPOINT 2']],
      [awaitCheckpoint(4), ['#4 done: 2, 0 bytes']],
      [awaitCheckpoint(5), []],
      [
        down(1),
        [
          'discard',
          '#5 failed: LINK_LOST: no checkpoint is known to be committed: cut',
          'LINK down: cut',
          'PROTECTION unprotected: cut',
        ],
      ],
    ],
  ],
  [
    'pressure is told at each step, once in an epoch',
    [
      CONNECTED,
      [held(499), []],
      [held(500), ['1: send pressure 500 of 1000', 'PRESSURE 500 of 1000']],
      [held(600), []],
      [held(950), ['1: send pressure 950 of 1000', 'PRESSURE 950 of 1000']],
      [marker(1), ['commit 1']],
      [committed(1), ['1: send done 1', 'CHECKPOINT 1']],
      [held(750), ['1: send pressure 750 of 1000', 'PRESSURE 750 of 1000']],
    ],
  ],
  [
    'an epoch that outgrows the memory ends protection loudly',
    [
      CONNECTED,
      [
        { type: 'overflow', localBytes: 0 },
        ((reason) => [
          `1: send refuse overflow in term 1: ${reason}`,
          `1: close: ${reason}`,
          'discard',
          `LINK down: ${reason}`,
          `PROTECTION unprotected: ${reason}`,
        ])(
          'the epoch, of 0 bytes so far, outgrew what the secondary can hold: 1000 bytes of memory, of which its own guests hold 0; checkpoint more often, or give it a larger memory= and journal=',
        ),
      ],
      [{ type: 'overflow', localBytes: 0 }, []],
    ],
  ],
  [
    'replication that is switched off refuses its primary until it is switched on',
    [
      CONNECTED,
      [
        { type: 'set-replicating', on: false },
        ((reason) => [
          `1: send refuse configuration in term 1: ${reason}`,
          `1: close: ${reason}`,
          'discard',
          `LINK down: ${reason}`,
          `PROTECTION unprotected: ${reason}`,
        ])('replication was switched off on the secondary'),
      ],
      [
        hello(2, { partner: 's1' }),
        [
          '2: send refuse configuration in term 1: replication is switched off on the secondary',
          '2: close: replication is switched off on the secondary',
        ],
      ],
      [{ type: 'set-replicating', on: true }, []],
      [
        hello(3, { partner: 's1' }),
        ['3: send hello from s1 of p1 at 0/0', 'LINK up', 'PROTECTION protected'],
      ],
    ],
  ],
]

const SETTINGS = {
  group: 'vm',
  mode: 'colo',
  incarnation: 's1',
  disks: DISKS,
  capacity: 1000,
  durable: true,
  heartbeatMs: 100,
  timeoutMs: 500,
} as const

function newMachine(): SecondaryMachine {
  return new SecondaryMachine(SETTINGS)
}

void t.test('a secondary', (t) => {
  for (const [story, steps] of STORIES) {
    const machine = newMachine()
    for (const [index, [input, effects]] of steps.entries())
      t.same(told(machine.step(input)), effects, `${story}: step ${index}`)
  }
  t.end()
})

void t.test('a commit that was never announced is our own bug', (t) => {
  const machine = newMachine()
  machine.step(hello(1))
  t.throws(() => machine.step(committed(1)), AssertionFailure)
  t.end()
})

void t.test('data is for a disk by its place in the hello, and within it', (t) => {
  const machine = newMachine()
  const write = (disk: number, position: number, length: number): Frame =>
    frame('write', { disk, position, payload: Buffer.alloc(length) })
  t.match(machine.diskOf(1, write(0, 0, 512)), /not the current one/, 'before any hello')
  machine.step(hello(1, { disks: [...DISKS].reverse() }))
  const cases: readonly (readonly [Frame, number | RegExp])[] = [
    [write(0, 7680, 512), 1],
    [write(1, 0, 4096), 0],
    [frame('zero', { disk: 1, position: 512, extent: 512 }), 0],
    [write(2, 0, 512), /disk 2, which does not exist/],
    [write(1, 4096, 512), /beyond the end of disk 1/],
    [write(1, 0, 4608), /beyond the end of disk 1/],
    [frame('zero', { disk: 1, extent: 4608 }), /beyond the end of disk 1/],
    [write(0, 1, 512), /not whole sectors/],
    [write(0, 0, 511), /not whole sectors/],
    [write(0, 0, 0), /not whole sectors/],
    [frame('zero', { disk: 1, extent: 0 }), /not whole sectors/],
  ]
  for (const [data, verdict] of cases) t.match(machine.diskOf(1, data), verdict)
  t.match(machine.diskOf(2, write(0, 0, 512)), /not the current one/, 'on another link')
  machine.step(marker(1))
  const effects = machine.step(committed(1))
  t.match(effects[1], { event: { data: { bytes: 512 + 4096 + 512 } } }, 'what was taken is counted')
  t.end()
})

void t.test('a secondary says what it is', (t) => {
  const machine = newMachine()
  const state = (): unknown[] => [machine.role, machine.committed, machine.term, machine.peer]
  t.same(state(), ['secondary', 0, 1, null])
  machine.step(hello(1, { term: 4 }))
  machine.step(marker(3))
  machine.step(committed(3))
  t.same(state(), ['secondary', 3, 4, 'peer'])
  machine.step(promote(1, true))
  t.same(state(), ['secondary', 3, 4, null], 'not before it is remembered')
  machine.step(REMEMBERED)
  t.same(state(), ['active', 3, 5, null])
  t.end()
})

void t.test('a secondary is what it remembers', (t) => {
  const machine = new SecondaryMachine({
    ...SETTINGS,
    remembered: { partner: 'p1', role: 'secondary', term: 3, committed: 7 },
  })
  t.same([machine.role, machine.committed, machine.term], ['secondary', 7, 3])
  t.same(told(machine.step(hello(1, { partner: 's1', checkpoint: 6, announced: 9, term: 3 }))), [
    '1: send hello from s1 of p1 at 7/7',
    'LINK up',
    'PROTECTION protected',
  ])
  const active = new SecondaryMachine({
    ...SETTINGS,
    remembered: { partner: 'p1', role: 'active', term: 4, committed: 7 },
  })
  t.same([active.role, active.committed, active.term], ['active', 7, 4])
  t.match(told(active.step(hello(1, { partner: 's1', term: 3 })))[0], /refuse deposed in term 4/)
  t.end()
})

void t.test('what is to be remembered is noted with each hello', (t) => {
  const machine = newMachine()
  const notes = machine.step(hello(1, { term: 5 })).filter(({ type }) => type === 'note')
  t.same(notes.map(describe), ['note secondary of p1 in term 5'])
  t.end()
})
