import t from 'tap'
import fc from 'fast-check'

import { BlockHistory, type Bounds } from '../../../cli/soak/block-history.ts'

const SIZE = 1024

function at(number: number, blocks = 1): Uint32Array {
  return new Uint32Array(blocks).fill(number)
}

function between(least: number, most: number, blocks = 1): Bounds {
  return { acknowledged: at(least, blocks), issued: at(most, blocks) }
}

/** The contents of the first writes to block 0; undefined where it was emptied. */
function writes(history: BlockHistory, kinds: readonly ('data' | 'empty')[]): Buffer[] {
  return kinds.map((kind) => history.issue(0, 1, kind === 'empty') ?? Buffer.alloc(SIZE))
}

void t.test('a block may hold one of the writes between the bounds, and nothing else', (t) => {
  const history = new BlockHistory(1, SIZE)
  const [first, second, third] = writes(history, ['data', 'data', 'data'])
  t.equal(history.violation(second!, between(1, 3)), undefined)
  t.equal(history.violation(second!, between(2, 2)), undefined)
  t.match(history.violation(first!, between(2, 3)), /block 0 .*write 1 of block 0, not one of the/)
  t.match(
    history.violation(third!, between(1, 2)),
    /write 3 of block 0, not one of the writes 1 to 2/,
  )
  t.match(history.violation(Buffer.alloc(SIZE), between(1, 3)), /zeroes/)
  t.equal(
    history.violation(Buffer.alloc(SIZE), between(0, 3)),
    undefined,
    'nothing was written yet',
  )
  t.end()
})

void t.test('an empty block is one that was emptied between the bounds', (t) => {
  const history = new BlockHistory(1, SIZE)
  const [, empty, last] = writes(history, ['data', 'empty', 'data'])
  t.equal(history.violation(empty!, between(1, 2)), undefined)
  t.equal(history.violation(empty!, between(1, 3)), undefined)
  t.match(history.violation(empty!, between(3, 3)), /zeroes, not write 3/)
  t.match(history.violation(last!, between(1, 2)), /write 3/)
  t.end()
})

void t.test('torn, damaged, misplaced and foreign blocks are seen', (t) => {
  const history = new BlockHistory(2, SIZE, 7)
  const [older, newer] = writes(history, ['data', 'data'])
  const torn = Buffer.concat([newer!.subarray(0, 512), older!.subarray(512)])
  const damaged = Buffer.from(newer!)
  damaged.writeUInt8(damaged.readUInt8(700) ^ 1, 700)
  const swapped = Buffer.concat([newer!.subarray(512), newer!.subarray(0, 512)])
  const foreign = new BlockHistory(2, SIZE, 8).issue(0, 1, false)!
  const misplaced = history.issue(1, 1, false)!
  for (const [what, block] of Object.entries({ torn, damaged, swapped, foreign, misplaced }))
    t.match(history.violation(block, between(0, 2)), /block 0 .* holds /, what)
  t.equal(history.violation(newer!, between(0, 2)), undefined)
  t.match(history.violation(misplaced, between(0, 2)), /write 1 of block 1/)
  t.end()
})

void t.test('a takeover throws the newest writes away, and none of them may come back', (t) => {
  const history = new BlockHistory(1, SIZE)
  const [first, second, third] = writes(history, ['data', 'empty', 'data'])
  history.settle(first!, between(1, 3))
  t.equal(history.violation(first!, history.exactly), undefined)
  const next = history.issue(0, 1, false)!
  t.equal(next.readUInt32BE(4), 4, 'numbers are not used twice')
  const now = { acknowledged: history.acknowledged(), issued: history.issued() }
  for (const allowed of [first, next]) t.equal(history.violation(allowed!, now), undefined)
  for (const gone of [second, third]) t.type(history.violation(gone!, now), 'string')
  history.acknowledge(0, 1)
  t.type(history.violation(first!, history.exactly), 'string', 'the newer one was acknowledged')
  t.equal(history.violation(next, history.exactly), undefined)
  t.end()
})

void t.test('after any schedule the model knows exactly the disk that it describes', (t) => {
  const blocks = 4
  const step = fc.oneof(
    fc.record({ kind: fc.constantFrom('data', 'empty', 'lost'), first: fc.nat(blocks - 1) }),
    fc.constant({ kind: 'settle', first: 0 } as const),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.nat(blocks * SIZE - 1), (steps, flip) => {
      const history = new BlockHistory(blocks, SIZE)
      const disk = Buffer.alloc(blocks * SIZE)
      for (const { kind, first } of steps) {
        if (kind === 'settle') {
          history.settle(disk, { acknowledged: history.acknowledged(), issued: history.issued() })
          continue
        }
        const content = history.issue(first, 1, kind === 'empty') ?? Buffer.alloc(SIZE)
        if (kind === 'lost') continue // issued before a crash, and never on the disk
        content.copy(disk, first * SIZE)
        history.acknowledge(first, 1)
      }
      const bounds = { acknowledged: history.acknowledged(), issued: history.issued() }
      if (history.violation(disk, bounds) !== undefined) return false
      disk.writeUInt8(disk.readUInt8(flip) ^ 0x10, flip)
      return history.violation(disk, bounds) !== undefined
    }),
  )
  t.end()
})
