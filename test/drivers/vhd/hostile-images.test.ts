import fc from 'fast-check'
import t, { type Test } from 'tap'

import { readStructures } from '../../../drivers/vhd/vhd-structures.ts'
import { checksum } from '../../../formats/vhd/checksum.ts'
import { RecordedFile } from '../../support/power-failures.ts'
import { newVhd, openInMemory } from './vhd-files.ts'

const SIZE = 64 * 1024
const HEADER = 512
const TABLE = 1536

/** Puts right checksums over wrong content. */
function sealed(image: Buffer): Buffer {
  for (const at of [0, image.length - 512])
    image.writeUInt32BE(checksum(image.subarray(at, at + 512), 64), at + 64)
  image.writeUInt32BE(checksum(image.subarray(HEADER, HEADER + 1024), 36), HEADER + 36)
  return image
}

function inFooters(image: Buffer, write: (footer: Buffer) => void): void {
  write(image.subarray(0, 512))
  write(image.subarray(image.length - 512))
}

async function dynamic(t: Test): Promise<Buffer> {
  return newVhd(t.testdir(), SIZE, { block_size: '4K', maximum: '64K' })
}

const LIES: readonly (readonly [lie: (image: Buffer) => void, why: RegExp])[] = [
  [
    (i) => inFooters(i, (f) => f.writeBigUInt64BE(2n ** 63n, 48)),
    /is no size or offset of a real disk/,
  ],
  [(i) => inFooters(i, (f) => f.writeBigUInt64BE(2n ** 42n, 48)), /beyond 2040 GiB/],
  [
    (i) => inFooters(i, (f) => f.writeBigUInt64BE(2n ** 40n, 48)),
    /blocks of 4096 bytes are too many/,
  ],
  [(i) => inFooters(i, (f) => f.writeBigUInt64BE(2n ** 52n, 16)), /header lies beyond the end/],
  [(i) => inFooters(i, (f) => f.writeBigUInt64BE(1024n, 16)), /no dynamic disk header/],
  [
    (i) => i.writeUInt32BE(0xffff_ffff, HEADER + 28),
    /the block table lies beyond the end of the file/,
  ],
  [(i) => i.writeBigUInt64BE(0n, HEADER + 16), /table is at byte 0/],
  [(i) => i.writeBigUInt64BE(1024n, HEADER + 16), /header overlaps the block table/],
  [(i) => i.writeBigUInt64BE(2n ** 50n, HEADER + 16), /beyond the end of the file/],
  [(i) => i.writeUInt32BE(0x8000_0000, HEADER + 32), /block size 2147483648/],
  [(i) => i.writeUInt32BE(0xffff_fff0, TABLE), /beyond the end of the file/],
  [(i) => i.writeUInt32BE(1, TABLE), /beyond the end of the file/],
]

for (const [lie, why] of LIES) {
  void t.test(`an image that lies is refused: ${why.source}`, async (t) => {
    const image = await dynamic(t)
    lie(image)
    const file = new RecordedFile(sealed(image))
    await t.rejects(openInMemory(file), { code: 'INVALID', what: why, where: 'memory' })
    t.same(file.events, [], 'and nothing is written to it')
  })
}

void t.test('two blocks in one place are refused', async (t) => {
  const file = new RecordedFile(await dynamic(t))
  const device = await openInMemory(file)
  await device.write(Buffer.alloc(SIZE, 1), 0, 0)
  await device.close()
  const image = Buffer.from(file.bytes)
  image.copyWithin(TABLE, TABLE + 4, TABLE + 8)
  await t.rejects(openInMemory(new RecordedFile(image)), { code: 'INVALID', what: /overlap/ })
})

void t.test('an image that was cut off is refused, wherever that was', async (t) => {
  const file = new RecordedFile(await dynamic(t))
  const device = await openInMemory(file)
  await device.write(Buffer.alloc(SIZE, 1), 0, 0)
  await device.close()
  for (let length = 0; length < file.bytes.length - 512; length += 1777) {
    const cut = new RecordedFile(file.bytes.subarray(0, length))
    await t.rejects(openInMemory(cut), { code: 'INVALID' }, `${length} bytes`)
  }
  const fixed = await newVhd(t.testdir(), SIZE, { subformat: 'fixed' })
  await t.rejects(openInMemory(new RecordedFile(fixed.subarray(512))), {
    code: 'INVALID',
    what: /was cut off/,
  })
  await t.rejects(openInMemory(new RecordedFile(fixed.subarray(0, SIZE))), {
    code: 'INVALID',
    what: /no VHD footer/,
  })
})

void t.test('either footer is enough, and both are there again after a close', async (t) => {
  const good = await dynamic(t)
  for (const at of [0, good.length - 512]) {
    const image = Buffer.from(good)
    image.fill(0, at, at + 512)
    const file = new RecordedFile(image)
    const device = await openInMemory(file)
    await device.write(Buffer.alloc(512, 1), 0, 0)
    await device.close()
    t.ok(file.bytes.subarray(0, 512).equals(good.subarray(0, 512)))
    t.ok(file.bytes.subarray(-512).equals(good.subarray(0, 512)))
  }
})

void t.test('what a guest wrote is not taken for a footer', async (t) => {
  const folder = t.testdir()
  const inner = await newVhd(folder, SIZE, { block_size: '4K', maximum: '64K' })
  const fixed = await newVhd(folder, SIZE, { subformat: 'fixed' })
  inner.copy(fixed)
  const found = await readStructures(new RecordedFile(fixed), 'memory')
  t.equal(found.kind, 'fixed', 'at the beginning of a fixed disk')

  const image = await dynamic(t)
  const forged = Buffer.concat([image.subarray(0, -512), inner.subarray(-512)])
  await t.rejects(openInMemory(new RecordedFile(forged)), {
    code: 'INVALID',
    what: /footers at its beginning and at its end are of different disks/,
  })
})

void t.test('a batmap that was overwritten is done without', async (t) => {
  const good = await newVhd(t.testdir(), SIZE, { batmap: 'on', maximum: '64M' })
  const at = good.indexOf('tdbatmap')
  t.ok(at > 0)
  for (const spoil of [
    (image: Buffer) => image.fill(0xff, at, at + 16),
    (image: Buffer) => image.fill(0xff, at + 8, at + 16),
    (image: Buffer) => image.writeUInt32BE(1, at + 24),
  ]) {
    const image = Buffer.from(good)
    spoil(image)
    const found = await readStructures(new RecordedFile(image), 'memory')
    t.match(found, { kind: 'sparse', batmap: undefined, flaws: [/batmap/] })
  }
})

void t.test('no metadata makes opening and reading do anything but work or refuse', async (t) => {
  const good = await dynamic(t)
  const change = fc.record({ at: fc.nat(2047), value: fc.nat(255) })
  await fc.assert(
    fc.asyncProperty(
      fc.array(change, { minLength: 1, maxLength: 6 }),
      fc.boolean(),
      async (changes, seal) => {
        const image = Buffer.from(good)
        for (const { at, value } of changes) image[at] = value
        if (seal) sealed(image)
        try {
          const device = await openInMemory(new RecordedFile(image))
          await device.read(Buffer.alloc(Math.min(device.geometry.size, SIZE)), 0)
          await device.close()
        } catch (error) {
          const { code } = error as { code?: string }
          if (code !== 'INVALID') throw error
        }
      },
    ),
    { numRuns: 200 },
  )
})
