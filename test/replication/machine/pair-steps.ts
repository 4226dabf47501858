/**
 * What can happen to a pair of replicas (pair-model.ts): each function changes the pair as the machines and their shells
 * would. The verdicts and the lines of data are those of the sources.
 *
 * Checked at each step, as a thrown error:
 *  - 1  What a secondary commits is what its primary had at the marker.
 *  - 15 After a resync nothing differs that neither side knew to differ.
 *  - 18 Nobody follows a side that lacks what was written here without protection, unless an operator has chosen so.
 */

import { verdictOn, type Hello, type Verdict } from '../../../replication/machine/handshake.ts'
import { forked, type ReplicaState } from '../../../replication/machine/replica-state.ts'
import {
  all,
  BLOCKS,
  dirtyBlocks,
  helloOf,
  linkAt,
  markBlock,
  newSecondary,
  none,
  other,
  primaryFrom,
  primaryOf,
  replicaOf,
  secondaryFrom,
  secondaryOf,
  stateOf,
  unsend,
  type Link,
  type Pair,
  type Primary,
} from './pair-model.ts'

/** The guest of a primary writes a block. */
export function write(pair: Pair, index: number, block: number): void {
  const replica = replicaOf(pair, index)
  const side = primaryOf(pair, index)
  const link = linkAt(pair, index)
  if (link === null && side.shared) {
    side.lineage = forked(side.lineage, `g${pair.names++}`, side.committed, 'write')
    side.shared = false
    replica.state = stateOf(side, false)
  }
  const value = `v${pair.names++}`
  side.touched = true
  markBlock(side, block, side.announced + 1)
  replica.regions[block] = true
  replica.image[block] = value
  if (link === null) replica.alone.push(value)
  else if (link.up[other(index)] === true) link.pending[block] = value
}

/** The link breaks; each side may be late to notice. */
export function lose(pair: Pair, who: readonly number[]): void {
  const { link } = pair
  if (link === null) return
  for (const index of who) link.up[index] = false
  if (!link.up.includes(true)) pair.link = null
}

/** The primary marks the end of an epoch, or of a part of a resync. */
export function mark(pair: Pair, partial: boolean): void {
  const { link } = pair
  if (link === null) return
  const side = primaryOf(pair, link.source)
  side.announced += 1
  side.shared = true
  const checkpoint = side.announced
  const target = other(link.source)
  if (link.up[target] !== true) return
  const { image, alone } = replicaOf(pair, link.source)
  const secondary = secondaryOf(pair, target)
  secondary.announced = checkpoint
  const state: ReplicaState = {
    ...link.lineage,
    ...{ role: 'secondary', term: secondary.term, wrote: false, announced: null },
    ...{ consistent: !partial, checkpoint, apart: {} },
  }
  const data = link.pending
  link.pending = data.map(() => null)
  secondary.commits.push({
    ...{ link: link.number, checkpoint, state, data },
    ...{ content: [...image], alone: [...alone] },
  })
}

/** The secondary has made the oldest epoch that it received durable. */
export function commit(pair: Pair, index: number): void {
  const replica = replicaOf(pair, index)
  const side = secondaryOf(pair, index)
  const next = side.commits.shift()
  if (next === undefined) return
  const before = side.state
  next.data.forEach((value, block) => {
    if (value !== null) replica.image[block] = value
  })
  const { state, content, alone, checkpoint } = next
  replica.state = state
  replica.alone = alone
  side.state = state
  if (state.consistent && String(replica.image) !== String(content))
    throw new Error(`checkpoint ${checkpoint} is ${replica.image.join()} and was ${content.join()}`)
  if (state.consistent && (before.wrote || !before.consistent)) {
    side.discard = null
    side.changed = null
    replica.regions = none()
  }
  const link = linkAt(pair, index)
  if (link?.number === next.link) link.acks.push({ checkpoint, partial: !state.consistent })
}

/** The primary hears of a commit. */
export function acknowledge(pair: Pair): void {
  const { link } = pair
  const ack = link?.acks.shift()
  if (link === null || ack === undefined) return
  const side = primaryOf(pair, link.source)
  commitTo(side, ack.checkpoint)
  if (!ack.partial && link.phase === 'settling' && ack.checkpoint >= link.awaited)
    stream(pair, link)
}

function commitTo(side: Primary, checkpoint: number): void {
  if (checkpoint < side.committed || checkpoint > side.announced)
    throw new Error(`checkpoint ${checkpoint} is reported after ${side.committed}`)
  side.committed = checkpoint
}

/** The pair is protected, and both sides know it. */
function stream(pair: Pair, link: Link): void {
  const side = primaryOf(pair, link.source)
  link.phase = 'streaming'
  side.discard = null
  side.role = 'primary'
  pair.chosen = false
  const target = other(link.source)
  if (link.up[target] === true) secondaryOf(pair, target).discard = null
}

/** The resync sends so many blocks, if there are so many. */
export function send(pair: Pair, blocks: number): void {
  const { link } = pair
  if (link === null) return
  const side = primaryOf(pair, link.source)
  const { image } = replicaOf(pair, link.source)
  let left = blocks
  for (let block = 0; block < BLOCKS && left > 0; block += 1) {
    if (link.unsent[block] !== true) continue
    left -= 1
    link.unsent[block] = false
    side.dirty[block] = side.announced + 1
    if (link.up[other(link.source)] === true) link.pending[block] = image[block] ?? null
  }
  if (link.unsent.includes(true)) return
  checkCovered(pair, link)
  if (!link.settles) return stream(pair, link)
  link.phase = 'settling'
  mark(pair, false)
  link.awaited = side.announced
}

/** Everything is sent: with that, the secondary has what the primary has. */
function checkCovered(pair: Pair, link: Link): void {
  const target = other(link.source)
  if (link.up[target] !== true) return
  const { image } = replicaOf(pair, target)
  const layers = [...secondaryOf(pair, target).commits.map(({ data }) => data), link.pending]
  const content = image.map((value, block) =>
    layers.reduce((under, data) => data[block] ?? under, value),
  )
  const wanted = replicaOf(pair, link.source).image
  if (String(content) !== String(wanted))
    throw new Error(`protected, with ${content.join()} instead of ${wanted.join()}`)
}

/** A block of the resync is all that the secondary should have to hold. */
export function sendPart(pair: Pair): void {
  const { link } = pair
  if (link === null) return
  send(pair, 1)
  link.settles = true
  mark(pair, true)
}

/** A replica gives up the role of a primary. */
export function demote(pair: Pair, index: number): void {
  const replica = replicaOf(pair, index)
  const side = primaryOf(pair, index)
  lose(pair, [0, 1])
  replica.state = { ...stateOf(side, true), role: 'secondary' }
  replica.side = secondaryFrom(replica.state, dirtyBlocks(side))
}

/** A secondary becomes active; `local`: its own guest has changed a block since the last checkpoint. */
export function promote(pair: Pair, index: number, local: boolean): void {
  const replica = replicaOf(pair, index)
  const side = secondaryOf(pair, index)
  lose(pair, [index])
  while (side.commits.length > 0) commit(pair, index)
  const { checkpoint } = side.state
  const state: ReplicaState = {
    ...forked(side.state, `g${pair.names++}`, checkpoint, 'promote'),
    ...{ role: 'active', term: side.term + 1, wrote: true, consistent: true },
    ...{ checkpoint, announced: null, apart: {} },
  }
  if (local) {
    replica.image[0] = `v${pair.names++}`
    replica.regions[0] = true
  }
  replica.state = state
  replica.side = primaryFrom(state, false, replica.regions)
}

/** The process ends and begins again. `tidy`: by a stop in order, so that all that is known is remembered. */
export function restart(pair: Pair, index: number, tidy: boolean): void {
  const replica = replicaOf(pair, index)
  const { side } = replica
  lose(pair, [index])
  if (side.kind === 'secondary') {
    replica.side = secondaryFrom(replica.state, null)
    return
  }
  // The map on disk says no more than it has to.
  replica.regions = dirtyBlocks(side)
  const state = tidy ? stateOf(side, true) : replica.state
  replica.state = { ...state, announced: null }
  replica.side = primaryFrom(state, true, replica.regions)
}

/** A replica comes back as a secondary with nothing that it knew. */
export function wipe(pair: Pair, index: number): void {
  lose(pair, [index])
  pair.replicas[index === 0 ? 0 : 1] = newSecondary(`v${pair.names++}`)
}

/** An operator gives up one side's changes. */
export function discard(pair: Pair, index: number, whose: 'local' | 'remote'): void {
  const { side } = replicaOf(pair, index)
  if (whose === 'local' && side.kind === 'primary') demote(pair, index)
  replicaOf(pair, index).side.discard = whose
  pair.chosen = true
}

function depose(pair: Pair, index: number): void {
  const side = primaryOf(pair, index)
  side.deposed = true
  if (!side.touched) demote(pair, index)
}

/** A primary that still believes in its link reads the refusal that the promoted secondary sent on it. */
export function hearPromoted(pair: Pair, index: number): void {
  lose(pair, [index])
  depose(pair, index)
}

/** A primary connects to the other replica. */
export function connect(pair: Pair, source: number): void {
  const target = other(source)
  const [ours, theirs] = [helloOf(pair, source), helloOf(pair, target)]
  const verdict = verdictOn(ours, theirs)
  if (replicaOf(pair, target).side.kind === 'primary') called(pair, target, ours, verdict)
  else if (verdict.kind === 'follow') follow(pair, source, verdict, theirs)
  if (verdict.kind === 'refuse') refused(pair, source, verdict.code, theirs.term)
}

function refused(pair: Pair, index: number, code: string, term: number): void {
  const { term: ours } = primaryOf(pair, index)
  if (code === 'deposed' || (code === 'split' && term > ours)) depose(pair, index)
}

/** Another primary connects to one. */
function called(pair: Pair, index: number, hello: Hello, verdict: Verdict): void {
  const { term } = primaryOf(pair, index)
  if (verdict.kind === 'follow' || (verdict.code === 'split' && hello.term > term))
    depose(pair, index)
}

function follow(
  pair: Pair,
  source: number,
  verdict: Extract<Verdict, { kind: 'follow' }>,
  theirs: Hello,
): void {
  const target = other(source)
  const [from, to] = [replicaOf(pair, source), replicaOf(pair, target)]
  const [primary, secondary] = [primaryOf(pair, source), secondaryOf(pair, target)]
  const lacks = to.alone.filter((value) => !from.alone.includes(value))
  if (lacks.length > 0 && !pair.chosen)
    throw new Error(`replica ${target} would lose ${lacks.join(', ')}, which nobody gave up`)
  lose(pair, [target])
  secondary.links += 1
  secondary.term = Math.max(secondary.term, primary.term)
  if (!verdict.settles) secondary.state = { ...secondary.state, ...primary.lineage }
  const told = secondary.state.wrote ? (secondary.changed ?? to.regions) : none()

  const copies = verdict.resync === 'everything'
  primary.announced = Math.max(primary.announced, theirs.announced ?? 0, theirs.checkpoint)
  primary.forgot = false
  if (primary.recalled) unsend(primary)
  primary.recalled = false
  if (!copies) commitTo(primary, verdict.at)
  for (let block = 0; block < BLOCKS; block += 1) {
    if (!copies && told[block] !== true) continue
    markBlock(primary, block, primary.announced + 1)
    from.regions[block] = true
  }
  if (!verdict.settles) primary.shared = true
  primary.term = Math.max(primary.term, theirs.term)
  unsend(primary)
  const unsent = dirtyBlocks(primary)
  pair.link = {
    ...{ number: secondary.links, source, up: all(), lineage: primary.lineage },
    ...{ phase: 'resyncing', settles: copies || verdict.settles, awaited: 0, unsent, acks: [] },
    pending: unsent.map(() => null),
  }
  if (!unsent.includes(true)) send(pair, BLOCKS)
}
