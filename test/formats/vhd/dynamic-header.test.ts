import fc from 'fast-check'
import t from 'tap'

import { MiB } from '../../../core/units.ts'
import { checksum } from '../../../formats/vhd/checksum.ts'
import {
  bitmapSize,
  headerBytes,
  newHeader,
  NO_LOCATOR,
  parseHeader,
  type DynamicHeader,
} from '../../../formats/vhd/dynamic-header.ts'
import { DYNAMIC, newFooter } from '../../../formats/vhd/footer.ts'
import { fillLocators } from '../../../formats/vhd/parent-names.ts'

const FOOTER = newFooter({
  ...{ size: 100 * MiB, type: DYNAMIC, creator: 'win ', creatorVersion: 0 },
  ...{ uuid: Buffer.alloc(16), timestamp: 0, dataOffset: 512 },
})
const GOOD = newHeader({
  tableOffset: 1536,
  tableEntries: 50,
  blockSize: 2 * MiB,
  parentUuid: Buffer.alloc(16),
  parentTimestamp: 0,
  parentName: Buffer.alloc(512),
  locators: fillLocators([], NO_LOCATOR),
})

void t.test('a header reads as it was written', (t) => {
  t.match(parseHeader(headerBytes(GOOD), FOOTER), { ...GOOD, checksum: Number })
  t.end()
})

const REFUSED: readonly { readonly change: Partial<DynamicHeader>; readonly why: RegExp }[] = [
  { change: { cookie: 'cxsparsE' }, why: /no dynamic disk header/ },
  { change: { version: 0x0002_0000 }, why: /version 0x20000/ },
  { change: { blockSize: 0 }, why: /block size 0 is no power of two/ },
  { change: { blockSize: 3 * MiB }, why: /no power of two/ },
  { change: { blockSize: 256 }, why: /not from 512/ },
  { change: { blockSize: 512 * MiB }, why: /not from 512 to/ },
  { change: { tableEntries: 49 }, why: /49 entries for 50 blocks/ },
  { change: { tableOffset: 0 }, why: /block table is at byte 0/ },
  { change: { tableOffset: 1537 }, why: /block table is at byte 1537/ },
]

for (const { change, why } of REFUSED) {
  void t.test(`a header is refused: ${why.source}`, (t) => {
    t.match(parseHeader(headerBytes({ ...GOOD, ...change }), FOOTER), why)
    t.end()
  })
}

void t.test('a table that would take too much memory is refused', (t) => {
  const header = headerBytes({ ...GOOD, blockSize: 512, tableEntries: 0xffff_ffff })
  t.match(
    parseHeader(header, { ...FOOTER, currentSize: 2 ** 40 }),
    /blocks of 512 bytes are too many/,
  )
  t.end()
})

void t.test('one changed byte, wherever it is, makes a header wrong', (t) => {
  fc.assert(
    fc.property(fc.nat(1023), fc.integer({ min: 1, max: 255 }), (at, by) => {
      const image = headerBytes(GOOD)
      image[at] = ((image[at] ?? 0) + by) % 256
      return typeof parseHeader(image, FOOTER) === 'string'
    }),
  )
  t.end()
})

void t.test('no bytes make the parser do anything but answer', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1024, maxLength: 1024 }), (bytes) => {
      const image = Buffer.from(bytes)
      image.write('cxsparse', 0, 'latin1')
      image.writeUInt32BE(checksum(image, 36), 36)
      try {
        parseHeader(image, FOOTER)
        return true
      } catch (error) {
        return (error as { code: string }).code === 'INVALID'
      }
    }),
  )
  t.end()
})

void t.test('a sector bitmap fills whole sectors', (t) => {
  t.same([512, 4096, 2 * MiB, 4 * MiB, 256 * MiB].map(bitmapSize), [512, 512, 512, 1024, 65_536])
  t.end()
})
