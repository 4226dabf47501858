import fc from 'fast-check'
import t from 'tap'

import { compressedEntry, hostClusters, readCompressed } from '../../../formats/qcow/compressed.ts'
import { NOWHERE } from '../../../formats/qcow/entry-format.ts'
import {
  BACKING,
  COMPRESSED,
  DATA,
  ExtentFinder,
  SHARED,
  ZERO,
  ZERO_KEPT,
} from '../../../formats/qcow/extents.ts'
import { L2Format } from '../../../formats/qcow/l2-table.ts'
import { layoutOf } from '../../../formats/qcow/layout.ts'
import {
  firstFree,
  mostRefcount,
  readRefcount,
  refcountBytes,
  writeRefcount,
} from '../../../formats/qcow/refcounts.ts'

function formatOf(options: { extended?: boolean; version?: 2 | 3; dataFile?: boolean } = {}) {
  const { extended = false, version = 3, dataFile = false } = options
  const layout = layoutOf({ clusterBits: 16, refcountBits: 16, extended })
  return new L2Format({ layout, version, dataFile })
}

void t.test('refcounts of every width are read as they were written, beside others', (t) => {
  for (const bits of [1, 2, 4, 8, 16, 32, 64]) {
    const counts = fc.array(fc.integer({ min: 0, max: Math.min(mostRefcount(bits), 2 ** 40) }), {
      minLength: 64,
      maxLength: 64,
    })
    fc.assert(
      fc.property(counts, (values) => {
        const block = Buffer.alloc(512)
        for (const [index, value] of values.entries()) writeRefcount(block, bits, index, value)
        const found = values.map((_, index) => readRefcount(block, bits, index))
        return found.every((value, index) => value === values[index])
      }),
      { numRuns: 20 },
    )
  }
  t.end()
})

void t.test('narrow refcounts begin with the least significant bit of a byte', (t) => {
  const block = Buffer.alloc(8)
  writeRefcount(block, 1, 0, 1)
  writeRefcount(block, 2, 5, 2)
  writeRefcount(block, 4, 5, 0xa)
  t.equal(block.toString('hex'), '0108a00000000000')
  writeRefcount(block, 16, 3, 0x1234)
  t.equal(block.toString('hex'), '0108a00000001234')
  t.throws(() => writeRefcount(block, 2, 0, 4), { name: 'AssertionFailure' })
  t.end()
})

void t.test('a search for a free cluster stops at its end', (t) => {
  const block = Buffer.alloc(8, 0xff)
  t.equal(firstFree(block, 4, 3, 16), 16)
  writeRefcount(block, 4, 9, 0)
  t.equal(firstFree(block, 4, 3, 16), 9)
  t.same(refcountBytes(4, 9, 9), { from: 4, to: 5 })
  t.same(refcountBytes(64, 1, 2), { from: 8, to: 24 })
  t.same(refcountBytes(1, 7, 8), { from: 0, to: 2 })
  t.end()
})

void t.test(
  'a compressed cluster is where its descriptor says, to the end of its last sector',
  (t) => {
    for (const clusterBits of [9, 12, 16, 21]) {
      fc.assert(
        fc.property(
          fc.integer({ min: 1, max: 2 ** 40 }),
          fc.integer({ min: 1, max: 2 ** clusterBits }),
          (at, length) => {
            const place = readCompressed(compressedEntry({ at, length }, clusterBits), clusterBits)
            const end = Math.ceil((at + length) / 512) * 512
            return place.at === at && place.at + place.length === end
          },
        ),
      )
    }
    // Offset 0x50200, two sectors beyond the first, in clusters of 64 KiB: x is 54 (qcow2.rst).
    t.same(readCompressed((1n << 62n) | (2n << 54n) | 0x50210n, 16), { at: 0x50210, length: 1520 })
    t.same(hostClusters({ at: 65_000, length: 1000 }, 65_536), { first: 0, last: 1 })
    t.end()
  },
)

void t.test('standard entries mean what the specification says', (t) => {
  const entries: readonly { entry: bigint; version?: 2 | 3; kind: number; host?: number }[] = [
    { entry: 0n, kind: BACKING },
    { entry: 1n, kind: ZERO },
    { entry: (1n << 63n) | 0x50000n, kind: DATA, host: 0x50000 },
    { entry: 0x50000n, kind: SHARED, host: 0x50000 },
    { entry: (1n << 63n) | 0x50001n, kind: ZERO_KEPT },
    { entry: (1n << 62n) | 0x50010n, kind: COMPRESSED },
    { entry: (1n << 63n) | 0x5f_0000_0000_0000n, kind: DATA, host: 0x5f_0000_0000_0000 },
  ]
  for (const { entry, kind, host = NOWHERE } of entries) {
    const format = formatOf()
    const table = Buffer.alloc(65_536)
    table.writeBigUInt64BE(entry, 8 * 5)
    const finder = new ExtentFinder(format)
    finder.find(table, undefined, 5 * 65_536 + 100, 1000)
    t.equal(finder.kind, kind, entry.toString(16))
    t.equal(finder.host, host === NOWHERE ? NOWHERE : host + 100)
    t.equal(finder.length, 1000)
  }
  t.end()
})

void t.test('neighbours in the image make one extent, others do not', (t) => {
  const format = formatOf()
  const table = Buffer.alloc(65_536)
  for (const [index, host] of [0x50000, 0x60000, 0x80000].entries())
    format.put(table, index, host, 1, 0)
  const finder = new ExtentFinder(format)
  finder.find(table, undefined, 512, 10 * 65_536)
  t.same([finder.kind, finder.host, finder.length], [DATA, 0x50200, 2 * 65_536 - 512])
  finder.find(table, undefined, 3 * 65_536, 2 ** 40)
  t.same([finder.kind, finder.length], [BACKING, (8192 - 3) * 65_536])
  finder.find(table, new Map([[1, 'bad']]), 0, 2 ** 40)
  t.equal(finder.length, 65_536)
  t.end()
})

void t.test('subclusters have states of their own', (t) => {
  const format = formatOf({ extended: true })
  const table = Buffer.alloc(65_536)
  format.put(table, 1, 0x50000, 0b0110, 0b1000)
  const finder = new ExtentFinder(format)
  const found: number[][] = []
  for (let at = 65_536; at < 2 * 65_536; at += finder.length) {
    finder.find(table, undefined, at, 2 * 65_536 - at)
    found.push([finder.kind, finder.host, finder.length])
  }
  t.same(found, [
    [BACKING, NOWHERE, 2048],
    [DATA, 0x50800, 4096],
    [ZERO_KEPT, NOWHERE, 2048],
    [BACKING, NOWHERE, 65_536 - 8192],
  ])
  t.throws(() => format.put(table, 1, 0x50000, 3, 2), { name: 'AssertionFailure' })
  t.end()
})

void t.test('what is put is what is found', (t) => {
  for (const extended of [false, true]) {
    const format = formatOf({ extended })
    const bits = fc.nat(extended ? 2 ** 32 - 1 : 1)
    fc.assert(
      fc.property(fc.nat(2 ** 32), bits, bits, fc.boolean(), (cluster, one, two, copied) => {
        const host = (cluster + 1) * 65_536
        const allocated = extended || two === 0 ? (one & ~two) >>> 0 : 0
        const table = Buffer.alloc(32)
        format.put(table, 1, host, extended ? allocated : two === 0 ? 1 : 0, two, copied)
        format.look(table, 1)
        const { copied: flag, zeroes } = format
        return format.host === host && flag === copied && zeroes === two
      }),
    )
  }
  t.end()
})

void t.test('entries that cannot be are objected to, each with its reason', (t) => {
  const cases: readonly [bigint, RegExp, Parameters<typeof formatOf>[0]?][] = [
    [(1n << 63n) | 0x50200n, /no cluster boundary/],
    [(1n << 63n) | 0x90000n, /beyond the end/],
    [(1n << 63n) | (1n << 58n) | 0x50000n, /reserved/],
    [(1n << 63n) | 0x50002n, /reserved/],
    [(1n << 63n) | 0x50001n, /reserved/, { version: 2 }],
    [(1n << 63n) | 0x50000n, /differs from the guest offset/, { dataFile: true }],
    [(1n << 62n) | 0x50000n, /data file/, { dataFile: true }],
    [(3n << 62n) | 0x50000n, /bit 63/],
    [(1n << 62n) | 0x90000n, /beyond the end/],
    [1n << 62n, /offset 0/],
  ]
  for (const [entry, says, options] of cases) {
    const format = formatOf(options)
    const table = Buffer.alloc(64)
    table.writeBigUInt64BE(entry, 8)
    t.match(format.objection(table, 1, 0x90000, 65_536), says, entry.toString(16))
  }
  const format = formatOf({ extended: true })
  const table = Buffer.alloc(32)
  table.writeBigUInt64BE(1n, 24)
  t.match(format.objection(table, 1, 0x90000, 0), /no cluster/)
  table.writeBigUInt64BE((1n << 63n) | 0x50000n, 16)
  table.writeBigUInt64BE((1n << 32n) | 1n, 24)
  t.match(format.objection(table, 1, 0x90000, 0), /both/)
  t.end()
})
