import fc from 'fast-check'
import t from 'tap'

import { GiB } from '../../../core/units.ts'
import { checksum } from '../../../formats/vhd/checksum.ts'
import {
  DYNAMIC,
  FIXED,
  FOOTER,
  footerBytes,
  newFooter,
  parseFooter,
  unixTimeMs,
  vhdTime,
  type Footer,
} from '../../../formats/vhd/footer.ts'
import { checkSize, resizedFooter } from '../../../formats/vhd/resize.ts'

const GOOD = newFooter({
  size: 10 * GiB,
  type: DYNAMIC,
  creator: 'win ',
  creatorVersion: 0x000a_0000,
  uuid: Buffer.alloc(16, 7),
  timestamp: 1000,
  dataOffset: 512,
})

void t.test('a footer reads as it was written', (t) => {
  t.match(parseFooter(footerBytes(GOOD)), { ...GOOD, checksum: Number })
  const fixed = { ...GOOD, type: FIXED, dataOffset: undefined }
  const image = footerBytes(fixed)
  t.equal(image.toString('hex', 16, 24), 'ffffffffffffffff')
  t.match(parseFooter(image), { dataOffset: undefined })
  t.end()
})

const REFUSED: readonly { readonly change: Partial<Footer>; readonly why: RegExp }[] = [
  { change: { cookie: 'conectiX' }, why: /no VHD footer/ },
  { change: { cookie: 'v_poison' }, why: /disabled by tapdisk/ },
  { change: { version: 0x0002_0000 }, why: /version 2\.0 is not known/ },
  { change: { type: 5 }, why: /disk type 5/ },
  { change: { currentSize: 0 }, why: /no size/ },
  { change: { currentSize: 1000 }, why: /no multiple of 512/ },
  { change: { currentSize: 2040 * GiB + 512 }, why: /beyond 2040 GiB/ },
  { change: { dataOffset: undefined }, why: /no dynamic header/ },
  { change: { dataOffset: 0 }, why: /header is at byte 0/ },
  { change: { dataOffset: 777 }, why: /header is at byte 777/ },
]

for (const { change, why } of REFUSED) {
  void t.test(`a footer is refused: ${why.source}`, (t) => {
    t.match(parseFooter(footerBytes({ ...GOOD, ...change })), why)
    t.end()
  })
}

void t.test('one changed byte, wherever it is, makes a footer wrong', (t) => {
  fc.assert(
    fc.property(fc.nat(511), fc.integer({ min: 1, max: 255 }), (at, by) => {
      const image = footerBytes(GOOD)
      image[at] = ((image[at] ?? 0) + by) % 256
      return typeof parseFooter(image) === 'string'
    }),
  )
  t.end()
})

void t.test(
  'the hidden mark of tapdisk 0.1 and 1.1, which forgot the checksum, is forgiven',
  (t) => {
    for (const [creatorVersion, forgiven] of [
      [0x0001, true],
      [0x0001_0001, true],
      [0x0001_0003, false],
    ] as const) {
      const image = footerBytes({ ...GOOD, creator: 'tap\0', creatorVersion })
      image[85] = 1
      t.equal(typeof parseFooter(image) !== 'string', forgiven)
    }
    t.end()
  },
)

void t.test('no bytes make the parser do anything but answer', (t) => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 512, maxLength: 512 }),
      fc.boolean(),
      (bytes, sealed) => {
        const image = Buffer.from(bytes)
        image.write('conectix', 0, 'latin1')
        if (sealed) image.writeUInt32BE(checksum(image, 64), 64)
        try {
          const found = parseFooter(image)
          return typeof found === 'string' || found.currentSize <= 2040 * GiB
        } catch (error) {
          return (error as { code: string }).code === 'INVALID'
        }
      },
    ),
  )
  t.end()
})

void t.test('a disk that grows keeps all that others know it by', (t) => {
  const grown = resizedFooter(GOOD, 20 * GiB)
  t.same({ ...grown, currentSize: 0, geometry: 0 }, { ...GOOD, currentSize: 0, geometry: 0 })
  t.equal(grown.currentSize, 20 * GiB)
  t.throws(() => resizedFooter(GOOD, 5 * GiB), { code: 'NOT_SUPPORTED' })
  for (const size of [0, -512, 100, 2040 * GiB + 512]) t.throws(() => checkSize(size))
  checkSize(2040 * GiB)
  t.end()
})

void t.test('times count from the year 2000', (t) => {
  t.equal(vhdTime(Date.UTC(2000, 0, 1, 0, 1)), 60)
  t.equal(unixTimeMs(60), Date.UTC(2000, 0, 1, 0, 1))
  t.equal(vhdTime(0), 0)
  t.equal(FOOTER.offsetOf('uuid'), 68)
  t.end()
})
