/**
 * Two replicas of a disk of two blocks, as data: what each has on stable storage and in memory, and the link between
 * them. pair-steps.ts has what can happen to them; connect-model.test.ts goes through all orders of it.
 */

import { UNSENT } from '../../../replication/machine/dirty-map.ts'
import { PROTOCOL, type Hello } from '../../../replication/machine/handshake.ts'
import {
  FRESH,
  type Lineage,
  type ReplicaState,
} from '../../../replication/machine/replica-state.ts'

/** What a block holds: the name of the write that it comes from. */
export type Content = string[]

/** A replica as a primary: what its machine knows. */
export interface Primary {
  kind: 'primary'
  lineage: Lineage
  role: 'primary' | 'active'
  shared: boolean
  recalled: boolean
  committed: number
  announced: number
  forgot: boolean
  term: number
  deposed: boolean
  touched: boolean
  discard: Hello['discard']
  /** By block: the epoch of its last change; 0: none; UNSENT: it has to be sent. */
  dirty: number[]
}

/** A marker that a secondary has received and not yet committed. */
export interface Commit {
  /** The link that it came on. */
  readonly link: number
  readonly checkpoint: number
  readonly state: ReplicaState
  /** What was received for it, by block. */
  readonly data: (string | null)[]
  /** What the primary held then, and what of it nobody else ever had. */
  readonly content: Content
  readonly alone: string[]
}

export interface Secondary {
  kind: 'secondary'
  state: ReplicaState
  announced: number
  term: number
  discard: Hello['discard']
  /** What it knows to have changed, where that is better known than on disk. */
  changed: boolean[] | null
  commits: Commit[]
  /** Links so far. */
  links: number
}

export interface Replica {
  /** As it is remembered. */
  state: ReplicaState
  regions: boolean[]
  image: Content
  /** Writes without protection that the image is built on. */
  alone: string[]
  side: Primary | Secondary
}

export interface Link {
  number: number
  source: number
  /** By replica: whether it still takes the link for alive. */
  up: boolean[]
  lineage: Lineage
  phase: 'resyncing' | 'settling' | 'streaming'
  settles: boolean
  /** The checkpoint that ends a settling. */
  awaited: number
  /** By block: whether the resync has yet to send it. */
  unsent: boolean[]
  /** What the secondary has received since the last marker. */
  pending: (string | null)[]
  /** Confirmations on their way. */
  acks: { checkpoint: number; partial: boolean }[]
}

export interface Pair {
  replicas: [Replica, Replica]
  link: Link | null
  /** An operator has said whose changes may be lost, and nothing was protected since. */
  chosen: boolean
  /** Names given so far. */
  names: number
}

export const BLOCKS = 2

export const none = (): boolean[] => Array<boolean>(BLOCKS).fill(false)
export const all = (): boolean[] => Array<boolean>(BLOCKS).fill(true)

export const other = (index: number): 0 | 1 => (index === 0 ? 1 : 0)

export function replicaOf({ replicas }: Pair, index: number): Replica {
  return index === 0 ? replicas[0] : replicas[1]
}

export function primaryOf(pair: Pair, index: number): Primary {
  const { side } = replicaOf(pair, index)
  if (side.kind !== 'primary') throw new Error('a step for primaries')
  return side
}

export function secondaryOf(pair: Pair, index: number): Secondary {
  const { side } = replicaOf(pair, index)
  if (side.kind !== 'secondary') throw new Error('a step for secondaries')
  return side
}

/** The link, while this replica takes it for alive. */
export function linkAt(pair: Pair, index: number): Link | null {
  return pair.link?.up[index] === true ? pair.link : null
}

/** A pair that never met; the first one begins as a primary. */
export function newPair(): Pair {
  const first: ReplicaState = {
    ...FRESH,
    ...{ role: 'primary', generation: 'g0', wrote: true, announced: 0 },
  }
  const remembered = { ...first, announced: null }
  return {
    replicas: [
      replicaWith(remembered, primaryFrom(first, false, none()), 'v0'),
      replicaWith(FRESH, secondaryFrom(FRESH, null), 'v1'),
    ],
    link: null,
    chosen: false,
    names: 2,
  }
}

/** A secondary that knows nothing, with a content that nobody knows. */
export const newSecondary = (value: string): Replica =>
  replicaWith(FRESH, secondaryFrom(FRESH, null), value)

function replicaWith(state: ReplicaState, side: Primary | Secondary, value: string): Replica {
  return { state, regions: none(), image: Array<string>(BLOCKS).fill(value), alone: [], side }
}

/** As PrimaryMachine begins. */
export function primaryFrom(
  remembered: ReplicaState,
  shared: boolean,
  changed: readonly boolean[],
): Primary {
  const { generation, history, checkpoint, announced, term, role } = remembered
  const from = announced ?? checkpoint
  return {
    kind: 'primary',
    lineage: { generation, history },
    role: role === 'active' ? 'active' : 'primary',
    shared,
    recalled: true,
    committed: checkpoint,
    announced: from,
    forgot: announced === null,
    term,
    deposed: false,
    touched: false,
    discard: null,
    dirty: changed.map((is) => (is ? from + 1 : 0)),
  }
}

/** As SecondaryMachine begins. */
export function secondaryFrom(remembered: ReplicaState, changed: boolean[] | null): Secondary {
  return {
    kind: 'secondary',
    state: { ...remembered, role: 'secondary' },
    announced: remembered.checkpoint,
    term: remembered.term,
    discard: null,
    changed,
    commits: [],
    links: 0,
  }
}

/** What a primary remembers of itself; as PrimaryMachine.state(). */
export function stateOf(side: Primary, ending: boolean): ReplicaState {
  return {
    ...side.lineage,
    role: side.role,
    term: side.term,
    wrote: true,
    consistent: true,
    checkpoint: side.committed,
    apart: {},
    announced: ending && !side.forgot ? side.announced : null,
  }
}

export const dirtyBlocks = ({ dirty, committed }: Primary): boolean[] =>
  dirty.map((epoch) => epoch > committed)

/** As DirtyMap.mark(). */
export function markBlock({ dirty }: Primary, block: number, epoch: number): void {
  if (dirty[block] !== UNSENT) dirty[block] = epoch
}

/** As DirtyMap.unsend(). */
export function unsend(side: Primary): void {
  side.dirty = side.dirty.map((epoch) => (epoch > side.committed ? UNSENT : epoch))
}

export function helloOf(pair: Pair, index: number): Hello {
  const { side } = replicaOf(pair, index)
  const common = {
    protocol: PROTOCOL,
    group: 'vm',
    mode: 'remus' as const,
    replica: `r${index}`,
    disks: [{ name: 'a', size: BLOCKS * 4096 }],
    discard: side.discard,
    identical: false,
    features: [],
    ack: 'sent' as const,
  }
  if (side.kind === 'primary') {
    const { lineage, committed: checkpoint, announced, forgot, term } = side
    return {
      ...{ ...common, ...lineage, role: 'primary', checkpoint, term },
      ...{ consistent: true, wrote: true, capacity: 0, durable: false },
      announced: forgot ? null : announced,
    }
  }
  const { generation, history, checkpoint, consistent, wrote } = side.state
  return {
    ...{ ...common, generation, history, checkpoint, consistent, wrote },
    ...{ role: 'secondary', term: side.term, announced: side.announced },
    ...{ capacity: 1 << 20, durable: true },
  }
}
