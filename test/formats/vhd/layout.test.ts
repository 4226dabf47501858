import t from 'tap'

import {
  areasObjection,
  endOfBlocks,
  nextSlot,
  slotSize,
  slotStride,
  tableObjection,
  tableSize,
  UNUSED,
  type Area,
} from '../../../formats/vhd/layout.ts'

const AREAS: readonly Area[] = [
  { name: 'the header', at: 512, length: 1024 },
  { name: 'the table', at: 1536, length: 512 },
]

void t.test('metadata that fits is not objected to', (t) => {
  t.equal(areasObjection(AREAS, 2048), undefined)
  t.end()
})

const MISPLACED: readonly (readonly [area: Area, why: RegExp])[] = [
  [{ name: 'the batmap', at: 2047, length: 512 }, /the table overlaps the batmap/],
  [{ name: 'the batmap', at: 0, length: 513 }, /the batmap overlaps the header/],
  [{ name: 'the batmap', at: 4096, length: 512 }, /the batmap lies beyond the end/],
]

for (const [area, why] of MISPLACED) {
  void t.test(`metadata is misplaced: ${why.source}`, (t) => {
    t.match(areasObjection([...AREAS, area], 4500), why)
    t.end()
  })
}

/** Blocks of 4 KiB take nine sectors; the metadata ends at sector 4. */
const TABLES: readonly (readonly [entries: readonly number[], why: RegExp | undefined])[] = [
  [[UNUSED, UNUSED], undefined],
  [[4, 13, UNUSED, 22], undefined],
  [[22, 4, 13], undefined],
  [[3], /overlaps the table/],
  [[0], /overlaps the header/],
  [[4, 12], /sectors 4 and 12 overlap/],
  [[4, 4], /sectors 4 and 4 overlap/],
  [[24], /beyond the end of the file/],
  [[0xffff_fffe], /beyond the end of the file/],
]

for (const [entries, why] of TABLES) {
  void t.test(
    `a table of ${entries.join(', ')} is ${why === undefined ? 'right' : 'refused'}`,
    (t) => {
      const found = tableObjection(Uint32Array.from(entries), 4096, AREAS, 32 * 512)
      if (why === undefined) t.equal(found, undefined)
      else t.match(found, why)
      t.end()
    },
  )
}

void t.test('new blocks come behind all others, with their data on whole pages', (t) => {
  t.equal(endOfBlocks(Uint32Array.from([UNUSED, 30, 4]), 4096, 2048), 30 * 512 + 512 + 4096)
  t.equal(endOfBlocks(Uint32Array.from([UNUSED]), 4096, 2048), 2048)
  for (const blockSize of [512, 4096, 2 ** 21]) {
    const first = nextSlot(5000, blockSize)
    t.ok(first >= 5000)
    t.equal((first + 512) % Math.min(blockSize, 4096), 0)
    t.equal(nextSlot(first + slotSize(blockSize), blockSize), first + slotStride(blockSize))
  }
  t.end()
})

void t.test('a table fills whole sectors', (t) => {
  t.same([1, 128, 129].map(tableSize), [512, 512, 1024])
  t.end()
})
