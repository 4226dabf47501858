import assert from 'node:assert/strict'

import fc from 'fast-check'
import t from 'tap'

import { lastContents, ReplayLog, type Change } from '../../../drivers/nbd/replay-log.ts'

const write = (at: number, bytes: Buffer): Change => ({
  kind: 'write',
  at,
  length: bytes.length,
  bytes,
  durable: false,
})
const show = (log: ReplayLog): string[] =>
  log.changes.map((change) =>
    change.kind === 'write'
      ? `${change.at}:${change.bytes.toString()}`
      : `${change.kind} ${change.at}`,
  )

void t.test('changes are kept as they were, in their order, until they are covered', (t) => {
  const log = new ReplayLog()
  const bytes = Buffer.from('one')
  log.add(write(0, bytes))
  bytes.fill('x')
  log.add({ kind: 'zero', at: 10, length: 5, flags: 0, durable: false })
  const mark = log.mark
  log.add(write(20, Buffer.from('two')))
  t.strictSame(show(log), ['0:one', 'zero 10', '20:two'])
  log.forget(mark)
  t.strictSame(show(log), ['20:two'])
  log.forget(mark)
  t.strictSame(show(log), ['20:two'], 'a mark covers nothing that came after it')
  log.forget(log.mark)
  t.equal(log.bytes, 0)
  t.end()
})

void t.test('what is kept is not overwritten by what comes later', (t) => {
  const log = new ReplayLog()
  for (let round = 0; round < 5; round += 1) {
    for (let index = 0; index < 40; index += 1) log.add(write(index, Buffer.alloc(50_000, index)))
    const whole = log.changes.every(
      (change) => change.kind === 'write' && change.bytes.every((byte) => byte === change.at),
    )
    t.ok(whole)
    t.ok(log.bytes > 2_000_000 && log.bytes < 2_100_000)
    log.forget(log.mark)
  }
  log.add(write(0, Buffer.alloc(3_000_000, 7)))
  t.ok(log.bytes > 3_000_000, 'also one that is larger than a piece')
  t.end()
})

const SIZE = 60
const anyChange: fc.Arbitrary<Change> = fc
  .record({
    kind: fc.constantFrom('write' as const, 'zero' as const, 'trim' as const),
    at: fc.nat(SIZE - 1),
    wanted: fc.integer({ min: 1, max: 20 }),
    value: fc.integer({ min: 1, max: 255 }),
    durable: fc.boolean(),
  })
  .map(({ kind, at, wanted, value, durable }) => {
    const length = Math.min(wanted, SIZE - at)
    if (kind === 'write') return { kind, at, length, durable, bytes: Buffer.alloc(length, value) }
    return kind === 'zero' ? { kind, at, length, durable, flags: 0 } : { kind, at, length, durable }
  })

function apply(disk: Buffer, change: Change): void {
  if (change.kind === 'write') change.bytes.copy(disk, change.at)
  else disk.fill(0, change.at, change.at + change.length)
}

void t.test(
  'whatever a server has kept of the changes, it has all of them after the last contents',
  (t) => {
    fc.assert(
      fc.property(
        fc.array(anyChange, { maxLength: 25 }),
        fc.infiniteStream(fc.boolean()),
        (changes, kept) => {
          const whole = Buffer.alloc(SIZE, 0xee)
          const disk = Buffer.alloc(SIZE, 0xee)
          const lastIsDurable = new Array<boolean>(SIZE).fill(false)
          for (const change of changes) {
            apply(whole, change)
            lastIsDurable.fill(change.durable, change.at, change.at + change.length)
            // What is durable is there; what came later in time may be there, or not.
            if (change.durable || kept.next().value) apply(disk, change)
          }
          const touched = new Set<number>()
          for (const change of lastContents(changes)) {
            assert.equal(
              change.kind === 'write' ? change.bytes.length : change.length,
              change.length,
            )
            for (let byte = change.at; byte < change.at + change.length; byte += 1) {
              assert.ok(!touched.has(byte), 'each byte is sent once')
              assert.ok(!lastIsDurable[byte], 'nothing is sent over what is durable')
              touched.add(byte)
            }
            apply(disk, change)
          }
          assert.ok(disk.equals(whole))
        },
      ),
      { numRuns: 1000 },
    )
    t.end()
  },
)
