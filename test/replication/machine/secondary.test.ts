import t from 'tap'

import { AssertionFailure } from '../../../core/assert.ts'
import { frame, type Frame } from '../../../replication/machine/frame.ts'
import {
  awaitCheckpoint,
  committed,
  CONNECTED,
  DISKS,
  down,
  greeting,
  held,
  hello,
  LOST,
  LOST_IN_COMMIT,
  marker,
  newMachine,
  RESYNCING,
  tell,
  tick,
  type Step,
} from './secondary-stories.ts'

const SWITCHED_OFF =
  'replication was switched off on the secondary: connect, there, switches it on again'
const STUCK =
  'the memory of the secondary is full, and neither its images nor its journal take anything: mend its disks, which the errors in its status name; it follows again when one of them takes something'

const STORIES: readonly (readonly [story: string, steps: readonly Step[]])[] = [
  [
    'done is sent when the epoch is committed, not before',
    [
      ...CONNECTED,
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
      [committed(1), ['1: send done 1', 'CHECKPOINT 1']],
      [marker(2), ['commit 2 as secondary of g1 at 2 in term 1']],
      [committed(2), ['1: send done 2', 'CHECKPOINT 2']],
    ],
  ],
  [
    'a marker that does not go forward ends the link',
    [
      ...CONNECTED,
      [marker(2), ['commit 2 as secondary of g1 at 2 in term 1']],
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
      ...CONNECTED,
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
      LOST_IN_COMMIT,
      [
        hello(2, { announced: 1 }),
        [
          '2: send hello from s on g1 at 0/1',
          '2: tell changes',
          'LINK down: cut',
          'LINK up',
          RESYNCING,
        ],
      ],
      [committed(1), ['CHECKPOINT 1']],
    ],
  ],
  [
    'the loss of the link is told when nothing is committed any more, and so is who waits for a checkpoint',
    [
      ...CONNECTED,
      [awaitCheckpoint(1), []],
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
      [marker(2, 1, false, false), ['commit 2 as secondary of g1 at 2 in term 1']],
      LOST_IN_COMMIT,
      [committed(1), ['CHECKPOINT 1', '#1 done: 1, 0 bytes']],
      [awaitCheckpoint(2), []],
      [
        committed(2),
        [
          'CHECKPOINT 2',
          '#2 failed: LINK_LOST: no checkpoint is known to be committed: cut',
          'LINK down: cut',
        ],
      ],
      [awaitCheckpoint(3), ['#3 failed: LINK_LOST: no primary is connected (cut)']],
    ],
  ],
  [
    'a log that fails, or a server that ends, commits nothing any more: then the loss is told as well',
    [
      ...CONNECTED,
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
      LOST_IN_COMMIT,
      [{ type: 'log-failed', reason: 'disk full' }, ['discard', 'LINK down: cut']],
      [{ type: 'log-restarted' }, []],
      [hello(2, { announced: 1 }), greeting(2)],
      [awaitCheckpoint(1), []],
      [marker(2, 2), ['commit 2 as secondary of g1 at 2 in term 1']],
      [down(2), ['discard', 'PROTECTION unprotected: cut']],
      [
        { type: 'ended' },
        ['#1 failed: LINK_LOST: no checkpoint is known to be committed: cut', 'LINK down: cut'],
      ],
    ],
  ],
  [
    'a primary that comes back replaces its old link, and nothing of that one counts any more',
    [
      ...CONNECTED,
      [
        hello(2),
        [
          '1: close: the primary came back on a new connection',
          'discard',
          'LINK down: the primary came back on a new connection',
          ...greeting(2),
        ],
      ],
      [marker(1, 1), []],
      [down(1), []],
      [marker(1, 2), ['commit 1 as secondary of g1 at 1 in term 1']],
    ],
  ],
  [
    'a stranger is refused and harms nobody',
    [
      ...CONNECTED,
      [
        hello(2, { generation: 'g9' }),
        ((reason) => [`2: send refuse history in term 1: ${reason}`, `2: close: ${reason}`])(
          'the two sides hold data that never had anything to do with each other; choose whose to give up with connect --discard local or remote',
        ),
      ],
      [down(2), []],
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
    ],
  ],
  [
    'a lost link discards what was not committed, once',
    [...CONNECTED, LOST, [down(1), []], [marker(1), []], [tick(10_000), []]],
  ],
  [
    'a primary that is silent is given up',
    [
      ...CONNECTED,
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
    'a log that fails loses what is not committed, and is begun anew for the next hello',
    [
      ...CONNECTED,
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
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
        hello(2, { announced: 1 }),
        ['restart-log', '2: send refuse unready in term 1: disk full', '2: close: disk full'],
      ],
      [{ type: 'log-restarted' }, []],
      [hello(3, { announced: 1 }), greeting(3)],
      [marker(2, 3), ['commit 2 as secondary of g1 at 2 in term 1']],
      [committed(2), ['3: send done 2', 'CHECKPOINT 2']],
    ],
  ],
  [
    'who waits for a checkpoint is told of the next one, and each is told to one',
    [
      [awaitCheckpoint(1), ['#1 failed: LINK_LOST: no primary is connected (waiting for one)']],
      ...CONNECTED,
      [awaitCheckpoint(2), []],
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
      [committed(1), ['1: send done 1', 'CHECKPOINT 1', '#2 done: 1, 0 bytes']],
      [awaitCheckpoint(3, 50), []],
      [tick(49), []],
      [tick(50), ['#3 failed: TIMEOUT: the primary announced no checkpoint in time']],
      [marker(2), ['commit 2 as secondary of g1 at 2 in term 1']],
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
    'a checkpoint that the primary made by itself answers nobody',
    [
      ...CONNECTED,
      [marker(1, 1, false, false), ['commit 1 as secondary of g1 at 1 in term 1']],
      [committed(1), ['1: send done 1', 'CHECKPOINT 1']],
      [awaitCheckpoint(1), []],
      [marker(2, 1, false, false), ['commit 2 as secondary of g1 at 2 in term 1']],
      [committed(2), ['1: send done 2', 'CHECKPOINT 2']],
      [marker(3), ['commit 3 as secondary of g1 at 3 in term 1']],
      [committed(3), ['1: send done 3', 'CHECKPOINT 3', '#1 done: 3, 0 bytes']],
    ],
  ],
  [
    'pressure is told at each step, once in an epoch',
    [
      ...CONNECTED,
      [held(499), []],
      [held(500), ['1: send pressure 500 of 1000', 'PRESSURE 500 of 1000']],
      [held(600), []],
      [held(950), ['1: send pressure 950 of 1000', 'PRESSURE 950 of 1000']],
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
      [committed(1), ['1: send done 1', 'CHECKPOINT 1']],
      [held(750), ['1: send pressure 750 of 1000', 'PRESSURE 750 of 1000']],
    ],
  ],
  [
    'that data is kept in the journal only is told as pressure, once in an epoch',
    [
      ...CONNECTED,
      [held(10, { spilledBytes: 0 }), []],
      [held(20, { spilledBytes: 512 }), ['1: send pressure 20 of 1000', 'PRESSURE 20 of 1000']],
      [held(30, { spilledBytes: 1024 }), []],
      [held(500, { spilledBytes: 1024 }), ['1: send pressure 500 of 1000', 'PRESSURE 500 of 1000']],
      [marker(1), ['commit 1 as secondary of g1 at 1 in term 1']],
      [committed(1), ['1: send done 1', 'CHECKPOINT 1']],
      [held(10, { spilledBytes: 0 }), []],
      [held(20, { spilledBytes: 512 }), ['1: send pressure 20 of 1000', 'PRESSURE 20 of 1000']],
    ],
  ],
  [
    'a secondary whose disks take nothing lets its primary go, until they do',
    [
      ...CONNECTED,
      [held(0, { held: true, nowMs: 0 }), []],
      [held(0, { held: true, nowMs: 1999 }), []],
      [
        held(0, { held: true, nowMs: 2000 }),
        [
          `ERROR ${STUCK}`,
          `1: send refuse unready in term 1: ${STUCK}`,
          `1: close: ${STUCK}`,
          'discard',
          `LINK down: ${STUCK}`,
          `PROTECTION unprotected: ${STUCK}`,
        ],
      ],
      [hello(2), [`2: send refuse unready in term 1: ${STUCK}`, `2: close: ${STUCK}`]],
      [held(0, { nowMs: 3000, progress: 1 }), []],
      [hello(3), greeting(3)],
    ],
  ],
  [
    'an epoch that outgrows the memory ends protection loudly',
    [
      ...CONNECTED,
      [
        { type: 'overflow', lack: 'its memory, of 1000 bytes' },
        ((reason) => [
          `1: send refuse overflow in term 1: ${reason}`,
          `1: close: ${reason}`,
          'discard',
          `LINK down: ${reason}`,
          `PROTECTION unprotected: ${reason}`,
        ])(
          'the epoch, of 0 bytes so far, outgrew what the secondary can hold: there is no room left in its memory, of 1000 bytes; checkpoint more often, or give the secondary more of that',
        ),
      ],
      [{ type: 'overflow', lack: 'its memory, of 1000 bytes' }, []],
    ],
  ],
  [
    'replication that is switched off refuses its primary until it is switched on',
    [
      ...CONNECTED,
      [
        { type: 'set-replicating', on: false },
        ((reason) => [
          `1: send refuse configuration in term 1: ${reason}`,
          `1: close: ${reason}`,
          'discard',
          `LINK down: ${reason}`,
          `PROTECTION unprotected: ${reason}`,
        ])(SWITCHED_OFF),
      ],
      [
        hello(2),
        [`2: send refuse configuration in term 1: ${SWITCHED_OFF}`, `2: close: ${SWITCHED_OFF}`],
      ],
      [{ type: 'set-replicating', on: true }, []],
      [hello(3), greeting(3)],
    ],
  ],
]

void t.test('a secondary', (t) => {
  for (const [story, steps] of STORIES) tell(t, story, newMachine(), steps)
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
