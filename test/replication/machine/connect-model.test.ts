/** Every order of a few steps of two replicas: writes, checkpoints, broken links, crashes, promotes, demotes, operators. */

import t from 'tap'

import { newPair, other, replicaOf, type Pair } from './pair-model.ts'
import { search, type Step } from './pair-search.ts'
import * as steps from './pair-steps.ts'

/** How many steps are gone through in all orders; one more takes about six times as long. */
const DEPTH = Number(process.env['MODEL_DEPTH'] ?? 4)

type Index = 0 | 1

const named = (index: Index, what: string, perform: (pair: Pair) => void): Step => [
  `${index === 0 ? 'A' : 'B'} ${what}`,
  perform,
]

/** The secondary commits all that it was sent, and the primary hears of it. */
function commitAll(pair: Pair): void {
  const { link } = pair
  if (link?.up.includes(false) !== false) return
  const target = other(link.source)
  for (let left = 9; left > 0; left -= 1) {
    steps.commit(pair, target)
    steps.acknowledge(pair)
  }
}

function checkpoint(pair: Pair): void {
  steps.mark(pair, false)
  commitAll(pair)
}

/** A primary connects and, if the other side follows it, the pair is protected. */
function protect(pair: Pair, source: Index): void {
  steps.connect(pair, source)
  if (pair.link?.source !== source) return
  steps.send(pair, Infinity)
  commitAll(pair)
}

function primarySteps(pair: Pair, index: Index): Step[] {
  const { side } = replicaOf(pair, index)
  if (side.kind !== 'primary') return []
  const possible: Step[] = [
    named(index, 'stops in order and starts', (pair) => steps.restart(pair, index, true)),
    named(index, 'is demoted', (pair) => steps.demote(pair, index)),
  ]
  if (!side.deposed)
    for (const block of [0, 1])
      possible.push(named(index, `writes ${block}`, (pair) => steps.write(pair, index, block)))
  if (pair.link?.up[index] !== true)
    possible.push(
      named(index, 'connects', (pair) => steps.connect(pair, index)),
      named(index, 'connects and is followed', (pair) => protect(pair, index)),
    )
  else if (pair.link.up[other(index)] === false)
    possible.push(named(index, 'hears of the promote', (pair) => steps.hearPromoted(pair, index)))
  return possible
}

function secondarySteps(pair: Pair, index: Index): Step[] {
  const { side } = replicaOf(pair, index)
  if (side.kind !== 'secondary') return []
  const possible: Step[] = []
  if (side.commits.length > 0)
    possible.push(named(index, 'commits', (pair) => steps.commit(pair, index)))
  if (side.state.generation !== null && side.state.consistent)
    possible.push(
      named(index, 'is promoted', (pair) => steps.promote(pair, index, false)),
      named(index, 'is promoted with writes', (pair) => steps.promote(pair, index, true)),
    )
  return possible
}

/** What can happen to a replica in either role. */
function replicaSteps(pair: Pair, index: Index): Step[] {
  const { side } = replicaOf(pair, index)
  const possible: Step[] = [
    named(index, 'crashes', (pair) => steps.restart(pair, index, false)),
    named(index, 'loses its memory', (pair) => steps.wipe(pair, index)),
  ]
  if (pair.link?.up[index] === true)
    possible.push(named(index, 'loses the link', (pair) => steps.lose(pair, [index])))
  else if (side.discard === null)
    for (const whose of ['local', 'remote'] as const)
      possible.push(named(index, `gives up ${whose}`, (pair) => steps.discard(pair, index, whose)))
  return possible
}

function linkSteps({ link }: Pair): Step[] {
  if (link === null) return []
  const possible: Step[] = []
  if (!link.up.includes(false))
    possible.push(['the link breaks', (pair) => steps.lose(pair, [0, 1])])
  if (link.up[link.source] !== true) return possible
  if (link.acks.length > 0) possible.push(['the commit is heard of', steps.acknowledge])
  if (link.phase === 'resyncing') {
    possible.push(['the resync ends', (pair) => steps.send(pair, Infinity)])
    if (link.unsent.filter(Boolean).length > 1)
      possible.push(['the resync sends a part', steps.sendPart])
    return possible
  }
  possible.push(
    ['a checkpoint is announced', (pair) => steps.mark(pair, false)],
    ['a checkpoint is made', checkpoint],
  )
  return possible
}

function stepsFor(pair: Pair): Step[] {
  const ofReplicas = ([0, 1] as const).flatMap((index) => [
    ...replicaSteps(pair, index),
    ...primarySteps(pair, index),
    ...secondarySteps(pair, index),
  ])
  return [...ofReplicas, ...linkSteps(pair)]
}

/** A pair to which this has happened. */
function pairAfter(...happened: ((pair: Pair) => void)[]): Pair {
  const pair = newPair()
  for (const perform of happened) perform(pair)
  return pair
}

const protects = (pair: Pair): void => protect(pair, 0)
const breaks = (pair: Pair): void => steps.lose(pair, [0, 1])
const writes = (pair: Pair): void => steps.write(pair, 0, 0)
const writesMore = (pair: Pair): void => steps.write(pair, 0, 1)
const connects = (pair: Pair): void => steps.connect(pair, 0)
const promotes = (pair: Pair): void => steps.promote(pair, 1, true)

const PAIRS: readonly (readonly [what: string, pair: Pair])[] = [
  ['that never met', newPair()],
  ['that is protected', pairAfter(protects)],
  ['whose primary went on alone', pairAfter(protects, breaks, writes)],
  [
    'of which a part of a resync is committed',
    pairAfter(protects, breaks, writes, writesMore, connects, steps.sendPart, commitAll),
  ],
  ['whose secondary was promoted', pairAfter(protects, writes, promotes)],
  ['of which both sides went on alone', pairAfter(protects, breaks, writes, promotes)],
]

for (const [what, begin] of PAIRS)
  void t.test(`a pair ${what} loses and mixes nothing`, (t) => {
    const { pairs, failures } = search(begin, DEPTH, stepsFor)
    t.same(failures, [], `${pairs} pairs in ${DEPTH} steps`)
    t.end()
  })
