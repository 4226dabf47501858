/**
 * colotap's COLO against QEMU's: the same guests, the same schedules, the same commands of libxl on both, and after each
 * step the guests of both have to see the same: what COLO's definition says. Where QEMU is known to differ, the difference is
 * asserted, so that it is noticed when it goes.
 *
 * The cases by name are those of QEMU's own tests/unit/test-replication.c, as a guest or a toolstack sees them, and
 * compared byte for byte. QEMU_SEED chooses the random schedules.
 */

import t, { type Test } from 'tap'
import { below, seededRandom, type Random } from '../../core/seeded-random.ts'
import { SECTOR } from '../../core/units.ts'
import {
  readDisk,
  startColotapColo,
  startQemuColo,
  type ColoPair,
  type Role,
} from '../support/colo-pairs.ts'
import { difference } from '../support/images.ts'

const SIZE = 1024 * 1024
const HALF = SIZE / 2
const STEPS = 60
const STEPS_ALONE = 10
const SCHEDULES = 4
const FIRST_SEED = Number(process.env['QEMU_SEED'] ?? Date.now() % 1_000_000)

const PAIRS = [startColotapColo, startQemuColo] as const
const CLEAN = { error: false }

/** A disk of one byte, or of one byte in each half. */
function disk(first: number, second = first): Buffer {
  return Buffer.concat([Buffer.alloc(HALF, first), Buffer.alloc(HALF, second)])
}

const LARGE = { primary: Buffer.alloc(16 * SIZE), secondary: Buffer.alloc(16 * SIZE) }
const BEGINNING = { primary: disk(0x11), secondary: disk(0x11) }

async function sees(t: Test, pair: ColoPair, role: Role, expected: Buffer): Promise<void> {
  const found = await readDisk(pair.guest[role])
  t.equal(difference(found, expected), undefined, `what the ${role}'s guest of ${pair.name} sees`)
}

interface Case {
  readonly name: string
  /** Whether replication is started before. */
  readonly started: boolean
  readonly contents?: Readonly<Record<Role, Buffer>>
  readonly run: (t: Test, pair: ColoPair) => Promise<void>
}

const status = (pair: ColoPair, role: Role): Promise<unknown> =>
  pair.qmp[role].execute('query-xen-replication-status')

/** The primary's guest has written the second half, and the secondary's guest the first one; nothing was checkpointed. */
async function bothWrite(t: Test, pair: ColoPair): Promise<void> {
  await pair.guest.primary.write(Buffer.alloc(HALF, 0x22), HALF)
  await sees(t, pair, 'secondary', disk(0x11))
  await pair.guest.secondary.write(Buffer.alloc(HALF, 0x33), 0)
  await sees(t, pair, 'secondary', disk(0x33, 0x11))
  await sees(t, pair, 'primary', disk(0x11, 0x22))
}

const CASES: readonly Case[] = [
  {
    name: 'primary/read: a primary never reads from its secondary',
    started: true,
    contents: { primary: disk(0x11), secondary: disk(0x77) },
    run: (t, pair) => sees(t, pair, 'primary', disk(0x11)),
  },
  {
    name: 'primary/write: before the start nothing reaches the secondary',
    started: false,
    run: async (t, pair) => {
      await pair.guest.primary.write(Buffer.alloc(SIZE, 0x22), 0)
      await sees(t, pair, 'primary', disk(0x22))
      if (pair.name === 'colotap') await sees(t, pair, 'secondary', disk(0x11))
    },
  },
  {
    name: 'primary/start: after the start the primary writes, and reads back what it wrote',
    started: true,
    run: async (t, pair) => {
      await pair.guest.primary.write(Buffer.alloc(SIZE, 0x22), 0)
      await sees(t, pair, 'primary', disk(0x22))
      await sees(t, pair, 'secondary', disk(0x11))
    },
  },
  {
    name: 'primary/stop: a primary that no longer replicates serves on',
    started: true,
    run: async (t, pair) => {
      await pair.qmp.primary.execute('xen-set-replication', {
        ...{ enable: false, primary: true, failover: true },
      })
      await pair.guest.primary.write(Buffer.alloc(SIZE, 0x22), 0)
      await sees(t, pair, 'primary', disk(0x22))
    },
  },
  {
    name: 'primary/do_checkpoint: a checkpoint without a write changes nothing',
    started: true,
    run: async (t, pair) => {
      await pair.checkpoint()
      for (const role of ['primary', 'secondary'] as const) await sees(t, pair, role, disk(0x11))
    },
  },
  {
    name: 'primary/get_error_all: a healthy primary has no error',
    started: true,
    run: async (t, pair) => {
      await pair.guest.primary.write(Buffer.alloc(SIZE, 0x22), 0)
      t.same(await status(pair, 'primary'), CLEAN)
    },
  },
  {
    name: 'secondary/start: the secondary sees its last checkpoint and its own writes',
    started: true,
    run: bothWrite,
  },
  {
    name: 'secondary/stop: a failover keeps the checkpoint and what the secondary wrote since',
    started: true,
    run: async (t, pair) => {
      await bothWrite(t, pair)
      await pair.promote()
      await sees(t, pair, 'secondary', disk(0x33, 0x11))
    },
  },
  {
    name: 'secondary/continuous_replication: what comes after a failover leaves the disk alone',
    started: true,
    run: async (t, pair) => {
      await bothWrite(t, pair)
      await pair.promote()
      for (const [command, args] of AFTER_FAILOVER) {
        const answer = pair.qmp.secondary.execute(command, args)
        if (pair.name === 'QEMU') await answer
        else await t.rejects(answer, 'what cannot be done fails')
      }
      await pair.promote()
      await sees(t, pair, 'secondary', disk(0x33, 0x11))
      await pair.guest.secondary.write(Buffer.alloc(HALF, 0x44), 0)
      await sees(t, pair, 'secondary', disk(0x44, 0x11))
    },
  },
  {
    name: 'secondary/do_checkpoint: after a checkpoint the secondary sees what the primary wrote, alone',
    started: true,
    run: async (t, pair) => {
      await bothWrite(t, pair)
      await pair.checkpoint()
      await sees(t, pair, 'secondary', disk(0x11, 0x22))
    },
  },
  {
    name: 'secondary/get_error_all: a healthy secondary has no error',
    started: true,
    run: async (t, pair) => {
      await bothWrite(t, pair)
      t.same(await status(pair, 'secondary'), CLEAN)
    },
  },
]

/** Commands to a secondary that was promoted: QEMU ignores them, and says that they succeeded. */
const AFTER_FAILOVER: readonly [string, Readonly<Record<string, unknown>>?][] = [
  ['xen-set-replication', { enable: true, primary: true }],
  ['xen-colo-do-checkpoint'],
]

for (const start of PAIRS)
  for (const { name, started, contents = BEGINNING, run } of CASES)
    void t.test(`${start === startQemuColo ? 'QEMU' : 'colotap'}, ${name}`, async (t) => {
      const pair = await start(t, contents)
      if (started) await pair.start()
      await run(t, pair)
    })

/** Where the two differ: what is asked of both, and what each answers. */
interface Difference {
  readonly name: string
  readonly started: boolean
  readonly contents?: Readonly<Record<Role, Buffer>>
  readonly ask: (pair: ColoPair) => Promise<unknown>
  readonly colotap: unknown
  readonly qemu: unknown
}

async function succeeds(work: Promise<unknown>): Promise<boolean> {
  return work.then(
    () => true,
    () => false,
  )
}

const DIFFERENCES: readonly Difference[] = [
  {
    name: 'secondary/read: before the start a guest of the secondary reads',
    started: false,
    ask: (pair) => succeeds(readDisk(pair.guest.secondary)),
    colotap: true,
    qemu: false,
  },
  {
    name: 'secondary/write: before the start a guest of the secondary writes',
    started: false,
    ask: (pair) => succeeds(pair.guest.secondary.write(Buffer.alloc(4096), 0)),
    colotap: true,
    qemu: false,
  },
  {
    name: 'a secondary checkpoints though its primary is dead',
    started: true,
    ask: async (pair) => {
      await pair.kill('primary')
      return succeeds(pair.qmp.secondary.execute('xen-colo-do-checkpoint'))
    },
    colotap: false,
    qemu: true,
  },
  {
    name: 'a primary checkpoints though its secondary is dead',
    started: true,
    ask: async (pair) => {
      await pair.kill('secondary')
      return succeeds(pair.qmp.primary.execute('xen-colo-do-checkpoint'))
    },
    colotap: false,
    qemu: true,
  },
  {
    name: 'a status during a failover is an error',
    started: true,
    // Much to copy, so that it is not over before the question.
    contents: LARGE,
    ask: async (pair) => {
      await pair.guest.primary.write(Buffer.alloc(LARGE.primary.length, 0x22), 0)
      const failover = { enable: false, primary: false, failover: true }
      const [, answer] = await Promise.all([
        pair.qmp.secondary.execute('xen-set-replication', failover),
        status(pair, 'secondary'),
      ])
      return (answer as { error: boolean }).error
    },
    colotap: false,
    qemu: true,
  },
  {
    name: 'a secondary stops in order, without a failover',
    started: true,
    ask: (pair) =>
      succeeds(
        pair.qmp.secondary.execute('xen-set-replication', {
          ...{ enable: false, primary: false, failover: false },
        }),
      ),
    colotap: true,
    qemu: false,
  },
  {
    name: 'after a power failure of both hosts the secondary has exactly the last checkpoint',
    started: true,
    ask: async (pair) => {
      await pair.guest.primary.write(Buffer.alloc(HALF, 0x22), 0)
      await pair.checkpoint()
      await pair.guest.primary.write(Buffer.alloc(HALF, 0x33), HALF)
      return (await pair.powerFailure()).equals(disk(0x22, 0x11))
    },
    colotap: true,
    qemu: false,
  },
  {
    name: 'a write of part of a sector leaves the rest of it alone on the secondary',
    started: true,
    ask: async (pair) => {
      await pair.guest.primary.write(Buffer.alloc(8, 0x22), 100)
      await pair.checkpoint()
      const expected = disk(0x11).fill(0x22, 100, 108)
      return (await readDisk(pair.guest.secondary)).equals(expected)
    },
    colotap: true,
    qemu: false,
  },
]

for (const { name, started, contents = BEGINNING, ask, colotap, qemu } of DIFFERENCES)
  void t.test(`known difference: ${name}`, async (t) => {
    for (const start of PAIRS) {
      const pair = await start(t, contents)
      if (started) await pair.start()
      t.equal(await ask(pair), pair.name === 'QEMU' ? qemu : colotap, pair.name)
    }
  })

/** A step of a schedule: the same for both pairs and for the model. */
type Step =
  | { readonly kind: 'checkpoint' }
  | {
      readonly kind: 'write' | 'zero'
      readonly role: Role
      readonly at: number
      readonly bytes: Buffer
    }

/** What the two guests of a COLO pair see, by its definition. */
class Model {
  readonly sees: Record<Role, Buffer> = { primary: disk(0x11), secondary: disk(0x11) }

  take(step: Step): void {
    if (step.kind === 'checkpoint') this.sees.secondary = Buffer.from(this.sees.primary)
    else step.bytes.copy(this.sees[step.role], step.at)
  }
}

/** A request of whole sectors: part of one is among the known differences. */
function guestRequest(role: Role, random: Random): Step {
  const at = below(random, SIZE / SECTOR) * SECTOR
  const most = random() < 0.5 ? 8 : 400
  const length = Math.min(SIZE - at, SECTOR * (1 + below(random, most)))
  const kind = random() < 0.15 ? 'zero' : 'write'
  return {
    kind,
    role,
    at,
    bytes: Buffer.alloc(length, kind === 'zero' ? 0 : 1 + below(random, 255)),
  }
}

function randomStep(random: Random): Step {
  const kind = random()
  if (kind < 0.15) return { kind: 'checkpoint' }
  return guestRequest(kind < 0.6 ? 'primary' : 'secondary', random)
}

function take(pair: ColoPair, step: Step): Promise<void> {
  switch (step.kind) {
    case 'checkpoint':
      return pair.checkpoint()
    case 'write':
      return pair.guest[step.role].write(step.bytes, step.at)
    case 'zero':
      return pair.guest[step.role].zero(step.at, step.bytes.length)
  }
}

function tell(step: Step): string {
  if (step.kind === 'checkpoint') return step.kind
  return `${step.role} ${step.kind} ${step.bytes.length} at ${step.at}`
}

/** Where a guest sees something else than the model says; empty when nowhere. */
async function disagreement(
  pairs: readonly ColoPair[],
  { sees }: Model,
  roles: readonly Role[],
): Promise<string> {
  for (const { name, guest } of pairs)
    for (const role of roles) {
      const found = difference(await readDisk(guest[role]), sees[role])
      if (found !== undefined) return `the ${role}'s guest of ${name}: ${found}`
    }
  return ''
}

for (let seed = FIRST_SEED; seed < FIRST_SEED + SCHEDULES; seed += 1)
  void t.test(`a random schedule looks alike on both, seed ${seed}`, async (t) => {
    const random = seededRandom(seed)
    const model = new Model()
    const pairs = await Promise.all(PAIRS.map((start) => start(t, BEGINNING)))
    for (const pair of pairs) await pair.start()
    const story: string[] = []
    const play = async (step: Step, roles: readonly Role[]): Promise<string> => {
      story.push(tell(step))
      model.take(step)
      await Promise.all(pairs.map((pair) => take(pair, step)))
      return disagreement(pairs, model, roles)
    }
    let wrong = ''
    for (let count = 0; count < STEPS && wrong === ''; count += 1)
      wrong = await play(randomStep(random), ['primary', 'secondary'])
    if (wrong === '') {
      story.push('failover')
      await Promise.all(pairs.map((pair) => pair.failOver()))
      wrong = await disagreement(pairs, model, ['secondary'])
    }
    for (let count = 0; count < STEPS_ALONE && wrong === ''; count += 1)
      wrong = await play(guestRequest('secondary', random), ['secondary'])
    t.equal(wrong, '', wrong === '' ? 'after each of the steps' : story.join('; '))
    t.notOk(model.sees.secondary.equals(disk(0x11)), 'something was written')
  })
