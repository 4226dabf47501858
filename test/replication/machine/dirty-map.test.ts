import assert from 'node:assert/strict'

import fc from 'fast-check'
import t from 'tap'

import { DIRTY_BLOCK, DirtyMap, SENT, UNSENT } from '../../../replication/machine/dirty-map.ts'

/** Far apart, so that several regions of the map are in use, their borders too. */
const BLOCKS = [0, 1, 2, 7, 4094, 4095, 4096, 4097, 8191, 8192, 1_000_000]

/** The map as it is defined: the last epoch of each block. */
class Model {
  readonly epochs = new Map<number, number>()

  mark(at: number, length: number, epoch: number): void {
    for (let block = Math.floor(at / DIRTY_BLOCK); block * DIRTY_BLOCK < at + length; block += 1)
      // A write may be to a part of it: what has to be sent of it still has to be.
      if (!this.isUnsent(block)) this.epochs.set(block, epoch)
  }

  dirty(committed: number): number[] {
    return [...this.epochs]
      .filter(([, epoch]) => epoch > committed)
      .map(([block]) => block)
      .sort((one, other) => one - other)
  }

  unsend(committed: number): void {
    for (const block of this.dirty(committed)) this.epochs.set(block, UNSENT)
  }

  isUnsent(block: number): boolean {
    return this.epochs.get(block) === UNSENT
  }
}

function walk(map: DirtyMap, limit: number, committed: number): number[] {
  const blocks: number[] = []
  let run = map.nextDirty(0, limit, committed)
  while (run !== undefined) {
    for (let at = run.at; at < run.at + run.length; at += DIRTY_BLOCK) blocks.push(at / DIRTY_BLOCK)
    if (run.length > Math.max(limit, DIRTY_BLOCK)) throw new Error('a run is longer than asked for')
    run = map.nextDirty(run.at + run.length, limit, committed)
  }
  return blocks
}

const mark = fc.record({
  kind: fc.constant('mark' as const),
  block: fc.constantFrom(...BLOCKS),
  offset: fc.nat(DIRTY_BLOCK - 1),
  length: fc.integer({ min: 1, max: 5 * DIRTY_BLOCK }),
})
const marker = fc.record({ kind: fc.constant('marker' as const) })
const commit = fc.record({
  kind: fc.constant('commit' as const),
  share: fc.double({ min: 0, max: 1, noNaN: true }),
})

void t.test('a block is dirty from its write until the epoch that carries it is committed', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.oneof({ weight: 5, arbitrary: mark }, marker, commit), { maxLength: 40 }),
      fc.integer({ min: 1, max: 6 * DIRTY_BLOCK }),
      (steps, limit) => {
        const map = new DirtyMap()
        const model = new Model()
        let announced = 0
        let committed = 0
        for (const step of steps) {
          switch (step.kind) {
            case 'mark': {
              const at = step.block * DIRTY_BLOCK + step.offset
              map.mark(at, step.length, announced + 1)
              model.mark(at, step.length, announced + 1)
              break
            }
            case 'marker':
              announced += 1
              break
            case 'commit':
              committed += Math.floor(step.share * (announced - committed))
              map.forget(committed)
          }
          const dirty = model.dirty(committed)
          t.same(walk(map, limit, committed), dirty)
          t.equal(map.dirtyBytes(committed), dirty.length * DIRTY_BLOCK)
        }
      },
    ),
  )
  t.end()
})

/** Few blocks, and close, so that what is sent, written and committed is the same one often. */
const near = fc.record({
  kind: fc.constant('mark' as const),
  block: fc.constantFrom(0, 1, 2, 4095, 4096),
  length: fc.integer({ min: 1, max: 3 * DIRTY_BLOCK }),
})
const link = fc.record({ kind: fc.constant('link' as const) })
/** The resync goes on by one run, from where it was or from somewhere else. */
const resend = fc.record({
  kind: fc.constant('resend' as const),
  from: fc.option(fc.constantFrom(0, 1, 2, 4095, 4096)),
  limit: fc.integer({ min: 1, max: 6 * DIRTY_BLOCK }),
})

/** A comparison has found whole blocks to be equal, or not to be. */
const compared = fc.record({
  kind: fc.constantFrom('settle' as const, 'needs' as const),
  block: fc.constantFrom(0, 1, 2, 4095, 4096),
  count: fc.integer({ min: 1, max: 3 }),
})

void t.test('a block that has to be sent is dirty until it was, whatever is committed', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.oneof(near, marker, commit, link, resend, compared), {
        maxLength: 40,
        size: 'max',
      }),
      (steps) => {
        const map = new DirtyMap()
        const model = new Model()
        let [announced, committed, next] = [0, 0, 0]
        for (const step of steps) {
          switch (step.kind) {
            case 'mark': {
              const at = step.block * DIRTY_BLOCK
              map.mark(at, step.length, announced + 1)
              model.mark(at, step.length, announced + 1)
              break
            }
            case 'marker':
              announced += 1
              break
            case 'commit':
              committed += Math.floor(step.share * (announced - committed))
              map.forget(committed)
              break
            case 'link':
              map.unsend(committed)
              model.unsend(committed)
              next = 0
              break
            case 'settle':
            case 'needs': {
              map[step.kind](step.block * DIRTY_BLOCK, step.count * DIRTY_BLOCK, announced + 1)
              for (let block = step.block; block < step.block + step.count; block += 1) {
                if (step.kind === 'needs') model.epochs.set(block, UNSENT)
                else if (model.isUnsent(block)) model.epochs.set(block, announced + 1)
              }
              t.equal(map.dirtyBytes(SENT), model.dirty(SENT).length * DIRTY_BLOCK)
              break
            }
            case 'resend': {
              const from = step.from === null ? next : step.from * DIRTY_BLOCK
              const run = map.nextDirty(from, step.limit, committed)
              if (run === undefined) break
              next = run.at + run.length
              for (let at = run.at; at < next; at += DIRTY_BLOCK) {
                // What was forwarded with its epoch needs no sending.
                if (!model.isUnsent(at / DIRTY_BLOCK)) continue
                map.sent(at, DIRTY_BLOCK, announced + 1)
                model.epochs.set(at / DIRTY_BLOCK, announced + 1)
              }
            }
          }
          const dirty = model.dirty(committed)
          assert.deepEqual(walk(map, DIRTY_BLOCK, committed), dirty)
          assert.equal(map.dirtyBytes(committed), dirty.length * DIRTY_BLOCK)
        }
      },
    ),
    { numRuns: 500 },
  )
  t.end()
})

void t.test('a walk may begin in the middle of a run', (t) => {
  const map = new DirtyMap()
  map.mark(0, 10 * DIRTY_BLOCK, 1)
  const middle = 3 * DIRTY_BLOCK + 512
  t.same(map.nextDirty(middle, DIRTY_BLOCK, 0), { at: 3 * DIRTY_BLOCK, length: DIRTY_BLOCK })
  t.equal(map.nextDirty(10 * DIRTY_BLOCK, DIRTY_BLOCK, 0), undefined)
  t.end()
})

void t.test('committed regions give their memory back, and only they', (t) => {
  const map = new DirtyMap()
  t.equal(map.memory, 0)
  map.mark(0, 1, 1)
  const one = map.memory
  map.mark(2 ** 40, 1, 2)
  t.equal(map.memory, 2 * one)
  map.forget(1)
  t.equal(map.memory, one)
  t.same(walk(map, DIRTY_BLOCK, 1), [2 ** 40 / DIRTY_BLOCK])
  map.forget(2)
  t.equal(map.memory, 0)
  t.end()
})
