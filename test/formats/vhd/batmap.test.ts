import t from 'tap'

import { GiB, MiB } from '../../../core/units.ts'
import {
  BATMAP_HEADER,
  batmapCoverage,
  batmapFits,
  batmapSize,
  hasBatmap,
  newBatmapHeader,
  parseBatmapHeader,
} from '../../../formats/vhd/batmap.ts'
import { DYNAMIC, newFooter } from '../../../formats/vhd/footer.ts'

const MAP = Buffer.alloc(1024, 0xaa)
const GOOD = newBatmapHeader(4096, MAP, 512)

void t.test('a batmap header reads as it was written, and fits its map', (t) => {
  const header = parseBatmapHeader(BATMAP_HEADER.bytesOf(GOOD), 8192)
  t.same(header, GOOD)
  t.ok(batmapFits(GOOD, MAP, 512))
  t.notOk(batmapFits(GOOD, Buffer.alloc(1024, 0xab), 512))
  t.end()
})

void t.test('version 1.1 added up signed bytes', (t) => {
  const signed = { ...GOOD, version: 0x0001_0001, checksum: ~(512 * -86) >>> 0 }
  t.ok(batmapFits(signed, MAP, 512))
  t.notOk(batmapFits({ ...signed, version: 0x0001_0002 }, MAP, 512))
  t.end()
})

const REFUSED = [
  { change: { cookie: 'tdbatmaP' }, why: /lost/ },
  { change: { version: 0x0001_0003 }, why: /version 0x10003/ },
  { change: { offset: 0 }, why: /at byte 0/ },
  { change: { offset: 100 }, why: /at byte 100/ },
  { change: { sectors: 1 }, why: /1 sectors for 8192 blocks/ },
]

for (const { change, why } of REFUSED) {
  void t.test(`a batmap is not believed: ${why.source}`, (t) => {
    t.match(parseBatmapHeader(BATMAP_HEADER.bytesOf({ ...GOOD, ...change }), 8192), why)
    t.end()
  })
}

void t.test('garbage where a batmap should be is no batmap', (t) => {
  const image = BATMAP_HEADER.bytesOf(GOOD).fill(0xff, 8, 16)
  t.match(parseBatmapHeader(image, 1), /beyond all files/)
  t.match(parseBatmapHeader(Buffer.alloc(512, 0xff), 1), /lost/)
  t.end()
})

void t.test('what libvhd checks of a map depends on the size of the disk, rounded down', (t) => {
  t.equal(batmapCoverage(1 * MiB), 512)
  t.equal(batmapCoverage(8 * GiB + 2 * MiB), 512)
  t.equal(batmapCoverage(8 * GiB + 16 * MiB), 1024)
  t.equal(batmapSize(4096), 512)
  t.equal(batmapSize(4097), 1024)
  t.end()
})

void t.test('only tapdisk from version 1.1 on makes batmaps', (t) => {
  const footer = newFooter({
    ...{ size: 512, type: DYNAMIC, creator: 'tap\0', creatorVersion: 0x0001_0003 },
    ...{ uuid: Buffer.alloc(16), timestamp: 0, dataOffset: 512 },
  })
  t.ok(hasBatmap(footer))
  t.notOk(hasBatmap({ ...footer, creatorVersion: 1 }))
  t.notOk(hasBatmap({ ...footer, creator: 'win ' }))
  t.end()
})
