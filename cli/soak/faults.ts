/**
 * What can happen to a pair under load in a round: one script for each kind. A script brings the fault about at a moment
 * that the seed chooses, lets the guest go on where it can, and heals.
 */

import { below, type Random } from '../../core/seeded-random.ts'
import { KiB } from '../../core/units.ts'
import type { Direction } from './faulty-link.ts'
import type { LocalPair } from './local-pair.ts'
import type { Session } from './session.ts'
import type { SoakDisk } from './soak-disk.ts'
import type { Tally } from './tally.ts'
import { verifyCheckpoint } from './verification.ts'
import { Violation } from './violation.ts'

export interface Stage {
  readonly pair: LocalPair
  readonly session: Session
  readonly disks: readonly SoakDisk[]
  readonly random: Random
  readonly tally: Tally
}

export interface FaultKind {
  /** For --help and the report. */
  readonly meaning: string
  /** What is left: a protected pair, or a secondary whose primary is lost. */
  readonly leaves: 'pair' | 'survivor'
  /** Needs checkpoints that survive the secondary's process. */
  readonly needsJournal?: true
  play(stage: Stage): Promise<void>
}

export const FAULTS = {
  quiet: {
    meaning: 'nothing happens',
    leaves: 'pair',
    play: ({ session, random }) => session.guests.after(moment(random)),
  },
  cut: {
    meaning: 'the link breaks in the middle of a frame',
    leaves: 'pair',
    play: async (stage) => {
      const { pair, session, random } = stage
      await session.guests.after(moment(random))
      const losses = pair.primary.control.losses
      pair.link.cut(1 + below(random, 256 * KiB))
      await pair.primary.control.linkLost(losses)
      await aloneThenHealed(stage)
    },
  },
  silence: {
    meaning: 'nothing passes in one direction, and the connection stands',
    leaves: 'pair',
    play: async (stage) => {
      const { pair, session, random } = stage
      await session.guests.after(moment(random))
      const losses = pair.primary.control.losses
      pair.link.setWeather(eitherWay(random), { kind: 'silent' })
      await pair.primary.control.linkLost(losses)
      await aloneThenHealed(stage)
    },
  },
  dribble: {
    meaning: 'bytes pass a few at a time',
    leaves: 'pair',
    play: async (stage) => {
      const { pair, session, random } = stage
      await session.guests.after(moment(random))
      for (const direction of BOTH_WAYS) pair.link.setWeather(direction, { kind: 'dribble' })
      await session.guests.after(1 + below(random, 100))
      await healed(stage)
    },
  },
  delay: {
    meaning: 'everything arrives late',
    leaves: 'pair',
    play: async (stage) => {
      const { pair, session, random } = stage
      await session.guests.after(moment(random))
      for (const direction of BOTH_WAYS)
        pair.link.setWeather(direction, { kind: 'late', ms: 1 + below(random, 40) })
      await session.guests.after(moment(random))
      await healed(stage)
    },
  },
  flip: {
    meaning: 'a bit of what passes is flipped',
    leaves: 'pair',
    play: async (stage) => {
      const { pair, session, random } = stage
      await session.guests.after(moment(random))
      const losses = pair.primary.control.losses
      pair.link.flip(eitherWay(random))
      await pair.primary.control.linkLost(losses)
      await healed(stage)
    },
  },
  'hang-secondary': {
    meaning: 'the secondary hangs until it counts as gone',
    leaves: 'pair',
    play: async (stage) => {
      const { pair, session, random } = stage
      await session.guests.after(moment(random))
      const losses = pair.primary.control.losses
      pair.secondary.hang(true)
      await pair.primary.control.linkLost(losses)
      await session.guests.after(moment(random))
      pair.secondary.hang(false)
      await healed(stage)
    },
  },
  'hang-primary': {
    meaning: 'the primary hangs until it counts as gone, and is not replaced',
    leaves: 'pair',
    play: async (stage) => {
      const { pair, session, random } = stage
      await session.guests.after(moment(random))
      const [primary, secondary] = [pair.primary.control, pair.secondary.control]
      const losses = { primary: primary.losses, secondary: secondary.losses }
      pair.primary.hang(true)
      await secondary.linkLost(losses.secondary)
      pair.primary.hang(false)
      await primary.linkLost(losses.primary)
      await healed(stage)
      await session.guests.after(moment(random))
    },
  },
  'kill-secondary': {
    meaning: 'SIGKILL to the secondary, perhaps again while it recovers',
    leaves: 'pair',
    needsJournal: true,
    play: killSecondary,
  },
  'kill-primary': {
    meaning: 'SIGKILL to the primary; the secondary takes over',
    leaves: 'survivor',
    play: async ({ pair, session, random }) => {
      await session.guests.after(moment(random))
      const losses = pair.secondary.control.losses
      await pair.primary.kill()
      await session.end()
      await pair.secondary.control.linkLost(losses)
    },
  },
  'kill-both': {
    meaning: 'SIGKILL to both; the secondary recovers and takes over',
    leaves: 'survivor',
    needsJournal: true,
    play: async ({ pair, session, random }) => {
      await session.guests.after(moment(random))
      await Promise.all([pair.secondary.kill(), pair.primary.kill()])
      await session.end()
      await comeBack(pair, random)
    },
  },
} as const satisfies Readonly<Record<string, FaultKind>>

export type FaultName = keyof typeof FAULTS

export const FAULT_NAMES = Object.keys(FAULTS) as readonly FaultName[]

const BOTH_WAYS: readonly Direction[] = ['to-secondary', 'to-primary']

/** Every kind equally often, in an order that the seed chooses anew each time. */
export class Schedule {
  readonly #kinds: readonly FaultName[]
  readonly #random: Random
  #left: FaultName[] = []

  constructor(kinds: readonly FaultName[], random: Random) {
    this.#kinds = kinds
    this.#random = random
  }

  next(): FaultName {
    if (this.#left.length === 0) this.#left = [...this.#kinds]
    const [kind] = this.#left.splice(below(this.#random, this.#left.length), 1)
    return kind ?? 'quiet'
  }
}

/** A number of writes: the moment of a fault is counted in the guest's progress, which a slow machine does not change. */
function moment(random: Random): number {
  return 1 + below(random, 1000)
}

function eitherWay(random: Random): Direction {
  return random() < 0.5 ? 'to-secondary' : 'to-primary'
}

/** The guest goes on without protection for a while. */
async function aloneThenHealed(stage: Stage): Promise<void> {
  await stage.session.guests.after(moment(stage.random))
  await healed(stage)
}

/** All is well from now on: the pair has to be protected again without anybody's help. */
async function healed({ pair, tally }: Stage): Promise<void> {
  const { protection } = await pair.primary.control.status()
  const startedMs = performance.now()
  pair.link.heal()
  await pair.protection()
  const healingUs = (performance.now() - startedMs) * 1000
  if (protection === 'protected') return
  const { recovery } = await pair.primary.control.status()
  tally.countHealing(healingUs, recovery?.movedBytes ?? 0)
}

async function killSecondary(stage: Stage): Promise<void> {
  const { pair, session, disks, random } = stage
  await session.guests.after(moment(random))
  const losses = pair.primary.control.losses
  await pair.secondary.kill()
  await pair.primary.control.linkLost(losses)
  await session.guests.after(moment(random))
  // Nobody reaches it before it was looked at.
  pair.link.cut()
  await comeBack(pair, random)
  const { durable, checkpoint } = await pair.secondary.control.status()
  if (!durable) throw new Violation('a secondary with a journal says that it is not durable')
  if (pair.mode === 'colo') {
    await verifyCheckpoint(pair.secondary, session.log, disks)
  } else {
    const bounds = session.log.boundsOf(checkpoint)
    if (typeof bounds === 'string') throw new Violation(`the recovered secondary: ${bounds}`)
  }
  await healed(stage)
}

/** The secondary starts on what it has left, and may lose its power again while it does. */
async function comeBack(pair: LocalPair, random: Random): Promise<void> {
  await pair.secondary.startAgain()
  for (let again = below(random, 3); again > 0; again -= 1) {
    await pair.secondary.kill()
    await pair.secondary.startAgain()
  }
}
