/**
 * What a replica remembers about itself: which line of data history it holds, how far, and in which role. Pure.
 *
 * A generation names a line of data. It is made when lines can part: by the first write of a primary that nobody follows,
 * and by a promote. A fork says where the line before it was left.
 *
 * Invariants:
 *  - `history` is ordered from the oldest fork to the newest, and bounded.
 *  - The first fork is never forgotten: two replicas of one origin are not taken for strangers, whatever else is.
 */

import { assert } from '../../core/assert.ts'
import type { ApartDisks } from './disk-sets.ts'
import { flagOf, malformed, objectOf, oneOf, textOf, wholeOf, type Fields } from './fields.ts'

/** Forks that are remembered. Where they may be too few to tell which side is newer, an operator has to. */
export const MAX_HISTORY = 16

export interface Fork {
  /** The line that was left. */
  readonly generation: string
  /** Its last checkpoint that the new line builds on. */
  readonly checkpoint: number
  /** Why the new line was begun. */
  readonly by: 'write' | 'promote'
}

export interface Lineage {
  /** Null while the replica holds nothing that is known. */
  readonly generation: string | null
  readonly history: readonly Fork[]
}

export interface ReplicaState extends Lineage {
  /** `active`: a primary by promote, and without a secondary since. */
  readonly role: 'primary' | 'secondary' | 'active'
  readonly term: number
  /** Whether this side was a primary of this line: then it tells what it changed. */
  readonly wrote: boolean
  /** False while the replica is a mixture of states, in the middle of a copy. */
  readonly consistent: boolean
  /** A checkpoint that was committed; the last one, except on a primary that crashed. */
  readonly checkpoint: number
  /** Disks that are in no checkpoint: they were added, and their copy is not whole. */
  readonly apart: ApartDisks
  /** The last checkpoint that a primary has announced, if it is known for sure; a crash makes it unknown. */
  readonly announced: number | null
}

/** What a replica is before it knows anything. Its term is a primary's first one, so that a promote deposes even a primary that was never met. */
export const FRESH: ReplicaState = {
  role: 'secondary',
  generation: null,
  history: [],
  term: 1,
  wrote: false,
  consistent: true,
  checkpoint: 0,
  apart: {},
  announced: null,
}

/** The line that begins here, after `checkpoint` of the present one. */
export function forked(
  { generation, history }: Lineage,
  next: string,
  checkpoint: number,
  by: Fork['by'],
): Lineage {
  if (generation === null) return { generation: next, history: [] }
  assert(generation !== next, 'a new generation is new')
  return { generation: next, history: bounded([...history, { generation, checkpoint, by }]) }
}

/**
 * A peer takes part in a line with its first checkpoint there. A line that was left at the checkpoint at which the one before
 * it was left has seen none, as far as is known: most likely nobody holds it, so such lines are forgotten first. It may be
 * that a peer committed one unheard, and was not heard of again in a whole history of such lines.
 */
function bounded(history: readonly Fork[]): readonly Fork[] {
  if (history.length <= MAX_HISTORY) return history
  const fruitless = history.findIndex(
    ({ by, checkpoint }, at) => by === 'write' && history[at - 1]?.checkpoint === checkpoint,
  )
  return history.toSpliced(fruitless === -1 ? 1 : fruitless, 1)
}

/** How the first line stands to the second one. */
export type Relation =
  | { readonly kind: 'same' }
  /** The second one was left by the first at the first of these forks. */
  | { readonly kind: 'ahead'; readonly since: readonly [Fork, ...Fork[]] }
  | { readonly kind: 'behind' }
  /**
   * Both left a common line, each at the first of its forks. `surely`: no later one may have been common, and neither side
   * merely be behind, by forks that were forgotten.
   */
  | {
      readonly kind: 'parted'
      readonly ours: readonly [Fork, ...Fork[]]
      readonly theirs: readonly [Fork, ...Fork[]]
      readonly surely: boolean
    }
  | { readonly kind: 'unrelated' }

/** Both lines have a generation. */
export function relate(ours: Lineage, theirs: Lineage): Relation {
  if (ours.generation === theirs.generation) return { kind: 'same' }
  const since = forksFrom(ours, theirs.generation)
  if (since !== undefined) return { kind: 'ahead', since }
  if (forksFrom(theirs, ours.generation) !== undefined) return { kind: 'behind' }
  for (const { generation } of ours.history.toReversed()) {
    const [left, right] = [forksFrom(ours, generation), forksFrom(theirs, generation)]
    if (left === undefined || right === undefined) continue
    const surely = ![ours, theirs].some(({ history }) => history.length === MAX_HISTORY)
    return { kind: 'parted', ours: left, theirs: right, surely }
  }
  return { kind: 'unrelated' }
}

/** The forks from that which left `generation` on. */
function forksFrom(
  { history }: Lineage,
  generation: string | null,
): readonly [Fork, ...Fork[]] | undefined {
  const first = history.findLastIndex((fork) => fork.generation === generation)
  const fork = history[first]
  return fork === undefined ? undefined : [fork, ...history.slice(first + 1)]
}

/** @throws Fault PROTOCOL naming the field that is wrong */
export function lineageOf(fields: Fields, what: string): Lineage {
  const { generation, history } = fields
  if (!Array.isArray(history) || history.length > MAX_HISTORY) throw malformed(`${what}.history`)
  return {
    generation: generation === null ? null : textOf(generation, `${what}.generation`),
    history: history.map((fork: unknown) => {
      const { generation: left, checkpoint, by } = objectOf(fork, `${what}.history`)
      return {
        generation: textOf(left, `${what}.history.generation`),
        checkpoint: wholeOf(checkpoint, `${what}.history.checkpoint`),
        by: oneOf(by, ['write', 'promote'], `${what}.history.by`),
      }
    }),
  }
}

/** @throws Fault PROTOCOL naming the field that is wrong */
export function replicaStateOf(fields: Fields, what: string): ReplicaState {
  return {
    ...lineageOf(fields, what),
    role: oneOf(fields['role'], ['primary', 'secondary', 'active'], `${what}.role`),
    term: wholeOf(fields['term'], `${what}.term`),
    wrote: flagOf(fields['wrote'], `${what}.wrote`),
    consistent: flagOf(fields['consistent'], `${what}.consistent`),
    checkpoint: wholeOf(fields['checkpoint'], `${what}.checkpoint`),
    apart: apartOf(fields['apart'], `${what}.apart`),
    announced:
      fields['announced'] === null ? null : wholeOf(fields['announced'], `${what}.announced`),
  }
}

/** Older builds remember nothing of it: none of their disks stands apart. */
function apartOf(value: unknown, what: string): ApartDisks {
  if (value === undefined) return {}
  const entries = Object.entries(objectOf(value, what))
  return Object.fromEntries(
    entries.map(([name, standing]) => [name, oneOf(standing, ['new', 'partial'] as const, what)]),
  )
}
