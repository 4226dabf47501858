/** What one simulated run is like; all of it follows from the seed. */

import { ACKS, type Ack, type GroupMode } from '../../replication/group.ts'
import { SLAB } from '../../ramdisk/page-memory.ts'
import { Random } from './random.ts'

const ENDINGS = [
  'heal',
  'primary-crash',
  'primary-restart',
  'secondary-restart',
  'promote',
  'active-restart',
  'failback',
  'switchover',
] as const

type Ending = (typeof ENDINGS)[number]

const FAULTS = [
  'cut',
  'silence',
  'partition',
  'primary-image',
  'secondary-image',
  'slow-primary',
  'slow-secondary',
  'switch-primary',
  'switch-secondary',
  'journal',
  'crash-primary',
  'crash-secondary',
] as const

/** Of the runs, in how many disks come and go, and grow; of those with several disks, in how many some are missing at the start. */
const CHANGE_SHARE = 0.35
const LATE_SHARE = 0.4

export type FaultKind = (typeof FAULTS)[number]

export interface Plan {
  readonly seed: number
  readonly mode: GroupMode
  /** Sectors of each disk. */
  readonly disks: readonly number[]
  /** Bytes of the secondary's memory. */
  readonly memory: number
  /** Bytes of it in use beyond which what is received is kept in the journal only; null: as usual, which is hardly ever. */
  readonly spillBytes: number | null
  /** Bytes under way beyond which writes with ack=sent wait, as a simulated disk can send them; null: the usual many. */
  readonly leastWindow: number | null
  readonly durability: 'journal' | 'memory'
  /** Whether the secondary begins with the primary's content, as both are told. */
  readonly identical: boolean
  readonly onLinkLoss: 'continue' | 'freeze'
  /** Bytes of a copy between two partial checkpoints. */
  readonly partBytes: number
  /** Bytes in one question of a comparison. */
  readonly compareBytes: number
  /** Whether a resync compares before it sends. */
  readonly comparesFirst: boolean
  /** Checkpoints that the primary makes by itself; 0: none. */
  readonly intervalMs: number
  readonly journalBytes: number
  readonly primaryDepth: number
  /** Requests of the secondary's guest under way at a time; 0: it has none. */
  readonly secondaryDepth: number
  readonly thinkMs: number
  /** Requests that a guest makes at this pace in each of its lives; then it becomes calm. */
  readonly burst: number
  readonly travelMs: number
  readonly primaryDiskMs: number
  readonly secondaryDiskMs: number
  readonly atOnce: number
  readonly secondaryZeroes: boolean
  /** The longest time between two checkpoints. */
  readonly checkpointMs: number
  readonly faults: readonly FaultKind[]
  readonly faultMs: number
  readonly chaosMs: number
  /** Quiet after the chaos, in which replicas tidy up. */
  readonly lullMs: number
  readonly ending: Ending
  readonly ack: Ack
  /** Whether disks are added, removed, and grow; and the longest time between two such commands. */
  readonly changes: boolean
  readonly changeMs: number
  /** Slots whose disks neither side has at the start. */
  readonly late: readonly number[]
}

export function planOf(seed: number): Plan {
  const random = new Random(seed)
  const mode = random.pick(['colo', 'remus'] as const)
  const faulty = random.chance(0.85)
  // Most runs are short, on few blocks: what can go wrong does so on a small stage as well, and more often a second.
  const long = random.chance(0.03)
  const disks = Array.from({ length: long ? 3 : random.pick([1, 1, 2, 3]) }, () =>
    long ? random.whole(17, 64) : random.whole(9, 25),
  )
  const memory = random.chance(0.4) ? random.whole(4, 10) * SLAB : 64 * SLAB
  const durability = random.pick(['journal', 'journal', 'memory'] as const)
  return {
    seed,
    mode,
    disks,
    memory,
    durability,
    identical: random.chance(0.5),
    onLinkLoss: random.pick(['continue', 'continue', 'freeze']),
    partBytes: random.pick([4096, 16384, 1 << 20]),
    compareBytes: random.pick([4096, 16384, 1 << 18]),
    comparesFirst: random.chance(0.4),
    intervalMs: random.pick([0, 0, 50]),
    journalBytes: random.pick([256 * 1024, 1 << 30]),
    primaryDepth: random.whole(1, 4),
    secondaryDepth: mode === 'colo' ? random.pick([0, 1, 3]) : 0,
    thinkMs: random.pick([2, 10, 40]),
    burst: long ? 4000 : random.pick([15, 40, 120]),
    travelMs: random.pick([1, 5, 20]),
    primaryDiskMs: random.pick([1, 5, 20]),
    secondaryDiskMs: random.pick([1, 5, 40]),
    atOnce: random.pick([0, 0, 0.3, 0.9]),
    secondaryZeroes: random.chance(0.8),
    checkpointMs: random.pick([15, 60, 200]),
    faults: faulty ? swarm(random) : [],
    faultMs: random.pick([20, 60, 200]),
    chaosMs: long ? random.whole(100, 900) : random.whole(40, 300),
    lullMs: random.chance(0.02) ? 61_000 : 0,
    ending: random.chance(0.5) ? 'heal' : random.pick(ENDINGS),
    ack: random.pick(durability === 'journal' ? ACKS : (['sent', 'received'] as const)),
    spillBytes: random.pick([null, null, 0, random.whole(1, 6) * SLAB]),
    leastWindow: random.pick([null, 512, 2048, 8192]),
    ...changesOf(random, disks.length),
  }
}

function changesOf(random: Random, disks: number): Pick<Plan, 'changes' | 'changeMs' | 'late'> {
  const changes = random.chance(CHANGE_SHARE)
  const changeMs = random.pick([10, 50, 200])
  const late = [...Array(disks).keys()].filter(() => changes && random.chance(LATE_SHARE))
  // A group begins with a disk.
  return { changes, changeMs, late: late.length === disks ? late.slice(1) : late }
}

/** Some of the kinds of faults: a run with few kinds goes deeper into each than one with all. */
function swarm(random: Random): FaultKind[] {
  const share = random.pick([0.15, 0.4, 0.8])
  return FAULTS.filter(() => random.chance(share))
}
