import fc from 'fast-check'
import t from 'tap'

import { dirtyExtents } from '../../../replication/machine/dirty-extents.ts'
import { DIRTY_BLOCK, DirtyMap } from '../../../replication/machine/dirty-map.ts'

const SIZE = 64 * DIRTY_BLOCK + 512

function extentsOf(map: DirtyMap, at: number, length: number): [number, number, number][] {
  const next = (from: number, limit: number): { at: number; length: number } | undefined =>
    from < SIZE ? map.nextDirty(from, limit, 0) : undefined
  return dirtyExtents(at, length, next).map((extent) => [extent.at, extent.length, extent.value])
}

void t.test('a disk that never changed is one clean stretch', (t) => {
  t.strictSame(extentsOf(new DirtyMap(), 512, 1024), [[512, 1024, 0]])
  t.end()
})

void t.test('a changed block is told as far as the range reaches into it', (t) => {
  const map = new DirtyMap()
  map.mark(2 * DIRTY_BLOCK + 100, 1, 1)
  t.strictSame(extentsOf(map, 0, 4 * DIRTY_BLOCK), [
    [0, 2 * DIRTY_BLOCK, 0],
    [2 * DIRTY_BLOCK, DIRTY_BLOCK, 1],
    [3 * DIRTY_BLOCK, DIRTY_BLOCK, 0],
  ])
  t.strictSame(extentsOf(map, 2 * DIRTY_BLOCK + 512, 512), [[2 * DIRTY_BLOCK + 512, 512, 1]])
  t.strictSame(extentsOf(map, DIRTY_BLOCK, DIRTY_BLOCK), [[DIRTY_BLOCK, DIRTY_BLOCK, 0]])
  t.end()
})

void t.test('any range of any map is told sector by sector as it was marked', (t) => {
  const sector = fc.nat(SIZE / 512 - 1)
  const range = fc
    .tuple(sector, sector)
    .map(([a, b]) => ({ at: Math.min(a, b) * 512, length: (Math.abs(a - b) + 1) * 512 }))
  fc.assert(
    fc.property(fc.array(range, { maxLength: 12 }), range, (marks, asked) => {
      const map = new DirtyMap()
      const blocks = new Set<number>()
      for (const { at, length } of marks) {
        map.mark(at, length, 1)
        const last = Math.floor((at + length - 1) / DIRTY_BLOCK)
        for (let block = Math.floor(at / DIRTY_BLOCK); block <= last; block += 1) blocks.add(block)
      }
      let position = asked.at
      let before = -1
      for (const [at, length, value] of extentsOf(map, asked.at, asked.length)) {
        t.equal(at, position, 'no gap and no overlap')
        t.not(value, before, 'neighbours differ')
        for (let part = at; part < at + length; part += 512)
          if (blocks.has(Math.floor(part / DIRTY_BLOCK)) !== (value === 1)) t.fail(`at ${part}`)
        position += length
        before = value
      }
      t.equal(position, asked.at + asked.length)
    }),
  )
  t.end()
})

void t.test('a disk in shreds is told in parts', (t) => {
  const map = new DirtyMap()
  for (let block = 0; block < 4096; block += 2) map.mark(block * DIRTY_BLOCK, 1, 1)
  const next = (from: number, limit: number): { at: number; length: number } | undefined =>
    map.nextDirty(from, limit, 0)
  const told = dirtyExtents(0, 4096 * DIRTY_BLOCK, next)
  t.ok(told.length >= 1024 && told.length <= 1026)
  t.end()
})
