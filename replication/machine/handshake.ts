/**
 * The hello that both sides of a link send first, and the verdict that both reach from the two hellos.
 *
 * Invariants:
 *  - The verdict is one function of both hellos, so both sides always reach the same one.
 *  - A hello comes from a stranger: every field is checked before it is used.
 *  - A pair whose histories cannot be shown to fit is refused, never assumed to be equal.
 */

import { ACKS, type Ack, type GroupMode } from '../group.ts'
import { objectionToDisks, type HelloDisk } from './disk-sets.ts'
import { flagOf, malformed, objectOf, oneOf, parseFields, textOf, wholeOf } from './fields.ts'
import {
  lineageOf,
  MAX_HISTORY,
  relate,
  type Fork,
  type Lineage,
  type Relation,
} from './replica-state.ts'

/** Versions of the link protocol that this build speaks. */
export const PROTOCOL = { min: 1, max: 1 } as const

const ACKNOWLEDGES = 'acknowledge'
export const TELLS = 'window'
/**
 * What this build can do on a link that older ones of the same version cannot. Each side says its own; what both say may be used.
 *  - checksums: a secondary answers `compare` frames.
 *  - acknowledge: a secondary says what it has, where it is asked.
 *  - window: a secondary says now and then what it has, also where no write waits for that.
 *  - disks: disks come and go, and grow, while the link is there (disk-sets.ts).
 */
export const FEATURES: readonly string[] = ['checksums', ACKNOWLEDGES, TELLS, 'disks']

const MOST_FEATURES = 64

export interface DiskIdentity {
  readonly name: string
  /** Bytes. */
  readonly size: number
}

export interface Hello extends Lineage {
  readonly protocol: { readonly min: number; readonly max: number }
  readonly group: string
  readonly mode: GroupMode
  /** Only primaries connect; either may be connected to. */
  readonly role: 'primary' | 'secondary'
  /** Of the replica, for as long as its memory lasts: its journal, or its process. */
  readonly replica: string
  /** Last committed checkpoint known to this side. */
  readonly checkpoint: number
  /** Last checkpoint that this side has announced or heard announced; null where a crash made that unknown. */
  readonly announced: number | null
  /** Whether what this side holds is a state, rather than a mixture. */
  readonly consistent: boolean
  /** Whether this side was a primary of its line: then it tells what it changed since `checkpoint`. */
  readonly wrote: boolean
  readonly term: number
  /** In the order in which frames number them. */
  readonly disks: readonly HelloDisk[]
  /** Bytes of one epoch that this side can hold (secondary); 0 on a primary. */
  readonly capacity: number
  /** Whether this side's checkpoints survive its crash (secondary). */
  readonly durable: boolean
  /** Whose changes an operator has given up, seen from this side, where the two have parted. */
  readonly discard: 'local' | 'remote' | null
  /** An operator says that both sides begin with the same content (primary). */
  readonly identical: boolean
  /** What the secondary has to have of a write before it completes (primary). */
  readonly ack: Ack
  /** See FEATURES; names that this build does not know are of newer ones. */
  readonly features: readonly string[]
}

/** `unready`: what is wrong is the secondary's alone, and may heal. */
const REFUSAL_CODES = [
  'version',
  'configuration',
  'history',
  'split',
  'deposed',
  'overflow',
  'unready',
] as const

export type RefusalCode = (typeof REFUSAL_CODES)[number]

export interface Refusal {
  readonly code: RefusalCode
  readonly reason: string
  /** The refuser's term: a primary that reads a higher one than its own is deposed. */
  readonly term: number
}

/**
 * What becomes of a connection, from the two hellos.
 *  - follow: the side that was connected to follows the one that connected. `resync` says what it lacks: what either side
 *    knows to have changed, or everything. `at`: the checkpoint of the source's line that it has, but for that.
 *    `settles`: it is not at a checkpoint of that line before the next one.
 *  - refuse: nothing is exchanged. `deposed`: the side that connected has to follow the other one instead.
 */
export type Verdict =
  | {
      readonly kind: 'follow'
      readonly resync: 'changes' | 'everything'
      readonly at: number
      readonly settles: boolean
    }
  | { readonly kind: 'refuse'; readonly code: RefusalCode; readonly reason: string }

/** Rules are tried in this order; the first one decides. */
export function verdictOn(source: Hello, target: Hello): Verdict {
  const objected = versionObjection(source, target) ?? configurationObjection(source, target)
  return objected ?? historyVerdict(source, target)
}

function refuse(code: RefusalCode, reason: string): Verdict & { kind: 'refuse' } {
  return { kind: 'refuse', code, reason }
}

function versionObjection(source: Hello, target: Hello): Verdict | undefined {
  const version = Math.min(source.protocol.max, target.protocol.max)
  if (version >= source.protocol.min && version >= target.protocol.min) return undefined
  const range = (hello: Hello): string => `${hello.protocol.min}-${hello.protocol.max}`
  return refuse(
    'version',
    `no common protocol version: the primary speaks ${range(source)}, the secondary ${range(target)}`,
  )
}

function configurationObjection(source: Hello, target: Hello): Verdict | undefined {
  const wrong = (reason: string): Verdict => refuse('configuration', reason)
  if (source.group !== target.group)
    return wrong(`the groups differ: primary "${source.group}", secondary "${target.group}"`)
  if (source.replica === target.replica) return wrong('a replica cannot follow itself')
  if (source.mode !== target.mode)
    return wrong(`the modes differ: primary ${source.mode}, secondary ${target.mode}`)
  if (source.role !== 'primary')
    return wrong(`the connecting side is ${source.role}, not a primary`)
  const objection = objectionToDisks(source, target)
  if (objection !== undefined) return refuse(objection.code, objection.reason)
  const unable = target.role === 'secondary' ? ackObjection(source.ack, target) : undefined
  return unable === undefined ? undefined : wrong(unable)
}

/** Why a secondary cannot acknowledge what a primary would wait for. */
export function ackObjection(
  ack: Ack,
  { features, durable }: Pick<Hello, 'features' | 'durable'>,
): string | undefined {
  if (ack === 'sent') return undefined
  if (!features.includes(ACKNOWLEDGES))
    return `ack=${ack} needs a secondary that acknowledges writes, and this one is too old: upgrade it, or use ack=sent`
  if (ack === 'durable' && !durable)
    return 'ack=durable needs a secondary with a journal, and this one has durability=memory: give it durability=journal, or use ack=received'
  return undefined
}

const EVERYTHING: Verdict = { kind: 'follow', resync: 'everything', at: 0, settles: true }

function changesSince(at: number, settles: boolean): Verdict {
  return { kind: 'follow', resync: 'changes', at, settles }
}

function historyVerdict(source: Hello, target: Hello): Verdict {
  if (source.generation === null || !source.consistent)
    return refuse('history', 'the connecting side holds nothing that could be followed')
  if (target.generation === null) {
    // What an operator says of the beginning holds only there.
    const begins = source.checkpoint === 0 && source.history.length === 0
    if (!source.identical || !begins) return EVERYTHING
    return { kind: 'follow', resync: 'changes', at: 0, settles: false }
  }
  const relation = relate(source, target)
  switch (relation.kind) {
    case 'same':
      return sameLine(source, target)
    case 'ahead':
      return leftBehind(source, target, relation.since)
    case 'behind':
      return refuse('deposed', 'the other side was promoted, or went on alone, after this line')
    case 'parted':
      return parted(source, target, relation)
    case 'unrelated':
      return chosen(source, target, () => EVERYTHING) ?? refuse('history', UNRELATED)
  }
}

const CHOOSE = 'choose whose to give up with connect --discard local or remote'
const UNRELATED = `the two sides hold data that never had anything to do with each other; ${CHOOSE}`

function sameLine(source: Hello, target: Hello): Verdict {
  if (target.role === 'primary') return refuse('configuration', 'both sides are primaries')
  if (target.term > source.term) return refuse('deposed', 'the secondary has seen a newer primary')
  if (source.announced !== null && target.checkpoint > source.announced) {
    const reason = `the secondary is at checkpoint ${target.checkpoint}, which this primary never announced`
    return chosen(source, target, () => EVERYTHING) ?? refuse('history', `${reason}; ${CHOOSE}`)
  }
  // What was committed there once is not there any more: what changed since is not known.
  if (target.checkpoint < source.checkpoint) return EVERYTHING
  return changesSince(target.checkpoint, !target.consistent)
}

type Forks = readonly [Fork, ...Fork[]]

/** A side knows what it changed since its last commit: nothing was committed since its first fork, or that is too little. */
function knowsSince({ checkpoint }: Hello, forks: Forks): boolean {
  return forks.every((fork) => fork.checkpoint === checkpoint)
}

/** The target holds a line that the source has left. */
function leftBehind(source: Hello, target: Hello, forks: Forks): Verdict {
  const [fork] = forks
  if (!knowsSince(source, forks)) return EVERYTHING
  if (fork.by === 'promote') {
    // An old primary tells what it changed since the last checkpoint that it knew of, which is at most the fork.
    const known = target.wrote
      ? target.checkpoint <= fork.checkpoint
      : target.checkpoint === fork.checkpoint
    return known ? changesSince(fork.checkpoint, true) : EVERYTHING
  }
  if (target.checkpoint < fork.checkpoint) return EVERYTHING
  if (source.announced !== null && target.checkpoint > source.announced) return EVERYTHING
  // It is on the source's line only when it has what was written alone: until then a promote of it is a split.
  return changesSince(target.checkpoint, true)
}

function parted(
  source: Hello,
  target: Hello,
  { ours, theirs, surely }: Extract<Relation, { kind: 'parted' }>,
): Verdict {
  const [left, right] = [ours[0], theirs[0]]
  const choice = chosen(source, target, () => {
    // Each side knows what it changed since its own fork. A primary's knowledge begins at or before what it committed.
    const covered =
      left.checkpoint === right.checkpoint ||
      (left.by === 'write' && right.by === 'promote' && right.checkpoint > left.checkpoint) ||
      (left.by === 'promote' && right.by === 'write' && left.checkpoint > right.checkpoint)
    const know = knowsSince(source, ours) && knowsSince(target, theirs)
    return know && covered && surely ? changesSince(left.checkpoint, true) : EVERYTHING
  })
  if (choice !== undefined) return choice
  const line = ({ generation, checkpoint }: Hello): string =>
    `${String(generation).slice(0, 8)} at checkpoint ${checkpoint}`
  const what = surely
    ? `split brain: both sides went on alone after checkpoint ${left.checkpoint}`
    : `split brain, or a side that was away for too long: since checkpoint ${left.checkpoint} more lines were begun than the ${MAX_HISTORY} that a side remembers`
  return refuse(
    'split',
    `${what}; this primary holds line ${line(source)}, the other side ${line(target)}; ${CHOOSE}`,
  )
}

/** What an operator has chosen, if anything. */
function chosen(source: Hello, target: Hello, follow: () => Verdict): Verdict | undefined {
  const loses = source.discard === 'local' || target.discard === 'remote'
  const wins = source.discard === 'remote' || target.discard === 'local'
  if (loses && wins) return refuse('split', 'the two sides were told to discard different changes')
  if (loses) return refuse('deposed', 'an operator has given up the changes of this side')
  return wins ? follow() : undefined
}

export function encodeHello(hello: Hello): Buffer {
  return Buffer.from(JSON.stringify(hello))
}

/** @throws Fault PROTOCOL naming the field that is wrong */
export function decodeHello(payload: Buffer): Hello {
  const fields = parseFields(payload, 'hello')
  const protocol = objectOf(fields['protocol'], 'hello.protocol')
  const disks = fields['disks']
  if (!Array.isArray(disks) || disks.length === 0 || disks.length > 0xffff)
    throw malformed('hello.disks')
  return {
    protocol: {
      min: wholeOf(protocol['min'], 'hello.protocol.min'),
      max: wholeOf(protocol['max'], 'hello.protocol.max'),
    },
    group: textOf(fields['group'], 'hello.group'),
    mode: oneOf(fields['mode'], ['colo', 'remus'], 'hello.mode'),
    ...lineageOf(fields, 'hello'),
    role: oneOf(fields['role'], ['primary', 'secondary'], 'hello.role'),
    replica: textOf(fields['replica'], 'hello.replica'),
    checkpoint: wholeOf(fields['checkpoint'], 'hello.checkpoint'),
    announced:
      fields['announced'] === null ? null : wholeOf(fields['announced'], 'hello.announced'),
    consistent: flagOf(fields['consistent'], 'hello.consistent'),
    wrote: flagOf(fields['wrote'], 'hello.wrote'),
    term: wholeOf(fields['term'], 'hello.term'),
    disks: disks.map((disk: unknown) => {
      const { name, size, apart } = objectOf(disk, 'hello.disks')
      return {
        name: textOf(name, 'hello.disks.name'),
        size: wholeOf(size, 'hello.disks.size'),
        ...(apart === undefined
          ? {}
          : { apart: oneOf(apart, ['new', 'partial'] as const, 'hello.disks.apart') }),
      }
    }),
    capacity: wholeOf(fields['capacity'], 'hello.capacity'),
    durable: flagOf(fields['durable'], 'hello.durable'),
    discard:
      fields['discard'] === null
        ? null
        : oneOf(fields['discard'], ['local', 'remote'] as const, 'hello.discard'),
    identical: flagOf(fields['identical'], 'hello.identical'),
    // Older builds do not say it, and have nothing else.
    ack: fields['ack'] === undefined ? 'sent' : oneOf(fields['ack'], ACKS, 'hello.ack'),
    features: featuresOf(fields['features']),
  }
}

/** Older builds say nothing of features: they have none. */
function featuresOf(value: unknown): readonly string[] {
  if (value === undefined) return []
  if (!Array.isArray(value) || value.length > MOST_FEATURES) throw malformed('hello.features')
  return value.map((name: unknown) => textOf(name, 'hello.features'))
}

export function encodeRefusal(refusal: Refusal): Buffer {
  return Buffer.from(JSON.stringify(refusal))
}

/** @throws Fault PROTOCOL naming the field that is wrong */
export function decodeRefusal(payload: Buffer): Refusal {
  const fields = parseFields(payload, 'refusal')
  return {
    code: oneOf(fields['code'], REFUSAL_CODES, 'refusal.code'),
    reason: textOf(fields['reason'], 'refusal.reason'),
    term: wholeOf(fields['term'], 'refusal.term'),
  }
}

/** A disk that a primary offers to its secondary. */
export function encodeDisk({ name, size }: DiskIdentity): Buffer {
  return Buffer.from(JSON.stringify({ name, size }))
}

/** @throws Fault PROTOCOL naming the field that is wrong */
export function decodeDisk(payload: Buffer): DiskIdentity {
  const { name, size } = parseFields(payload, 'disk')
  return { name: textOf(name, 'disk.name'), size: wholeOf(size, 'disk.size') }
}
