import * as fs from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import type { BlockDevice } from '../../../core/block-device.ts'
import { Guard } from '../../../drivers/guard.ts'
import { RamDevice } from '../../../drivers/ram.ts'
import { RecordedFile } from '../../support/power-failures.ts'
import { identityOf, inspectVhd, readVhd } from '../../support/vhd-inspector.ts'
import { checkAgainstModel, pattern } from '../device-model.ts'
import { newVhd, openInMemory } from './vhd-files.ts'

const SIZE = 64 * 1024

interface Variant {
  readonly name: string
  readonly settings: Readonly<Record<string, string>>
  /** Bytes of the parent, if there is one. */
  readonly parent?: number
}

const VARIANTS: readonly Variant[] = [
  { name: 'a fixed image', settings: { subformat: 'fixed' } },
  { name: 'a dynamic image', settings: { maximum: '1M' } },
  { name: 'blocks of 512 bytes', settings: { block_size: '512', maximum: '64K' } },
  { name: 'blocks of 4 KiB', settings: { block_size: '4K', maximum: '64K' } },
  { name: 'one block larger than the disk', settings: { block_size: '256K', maximum: '1M' } },
  { name: 'a child', settings: { block_size: '8K', maximum: '64K' }, parent: SIZE },
  { name: 'a child with small blocks', settings: { block_size: '512' }, parent: SIZE },
  { name: 'a child of a short parent', settings: { block_size: '4K' }, parent: 20_992 },
]

for (const { name, settings, parent } of VARIANTS) {
  void t.test(`${name} does what an array of bytes does, and others read the same`, async (t) => {
    const folder = t.testdir()
    const below = Buffer.alloc(parent ?? 0, pattern(parent ?? 0, 5))
    fs.writeFileSync(join(folder, 'parent.img'), below)
    const backing = parent === undefined ? undefined : { named: 'parent.img', format: 'aio' }
    const image = await newVhd(folder, SIZE, { maximum: '1M', ...settings }, backing)
    const file = new RecordedFile(image)
    const device = new Guard(await openInMemory(file, parentDevice(below)), false)
    t.ok((await contentOf(device)).equals(readVhd(image, below)), 'it shows its parent at first')

    await checkAgainstModel(device, { size: SIZE, unit: 512, runs: 12, resizes: false })
    const content = await contentOf(device)
    await device.close()
    t.equal(inspectVhd(file.bytes, true), undefined)
    t.ok(readVhd(file.bytes, below).equals(content), 'the file has what the disk had')
    t.equal(identityOf(file.bytes), identityOf(image), 'creator, time and uuid are as they were')

    const again = await openInMemory(new RecordedFile(file.bytes), parentDevice(below))
    t.ok((await contentOf(again)).equals(content), 'and so after it is opened again')
    await again.close()
  })
}

void t.test('a file is as long as it needs to be when it is closed', async (t) => {
  const image = await newVhd(t.testdir(), SIZE, { block_size: '4K', maximum: '64K' })
  const file = new RecordedFile(image)
  const device = await openInMemory(file)
  await device.write(Buffer.alloc(512, 1), 0, 0)
  await device.close()
  t.ok(file.bytes.length <= image.length + 512 + 3 * 4096, `${file.bytes.length} bytes`)
  t.end()
})

void t.test('opening and closing an image changes no byte of it', async (t) => {
  const folder = t.testdir()
  for (const settings of [{ subformat: 'fixed' }, { subformat: 'dynamic' }]) {
    const image = await newVhd(folder, SIZE, settings)
    const file = new RecordedFile(image)
    const device = await openInMemory(file)
    await contentOf(device)
    await device.flush()
    await device.close()
    t.same(
      file.events.filter(({ kind }) => kind !== 'flush'),
      [],
    )
  }
})

void t.test('writes to one new block share it', async (t) => {
  const image = await newVhd(t.testdir(), SIZE, { block_size: '8K', maximum: '64K' })
  const file = new RecordedFile(image)
  const device = await openInMemory(file)
  await Promise.all(
    Array.from({ length: 16 }, async (_, sector) =>
      device.write(Buffer.alloc(512, sector + 1), 16_384 + sector * 512, 0),
    ),
  )
  await device.close()
  const disk = readVhd(file.bytes)
  for (let sector = 0; sector < 16; sector += 1) t.equal(disk[16_384 + sector * 512], sector + 1)
  t.ok(file.bytes.length < image.length + 2 * (8192 + 4096))
})

void t.test('a trimmed sector of a child never shows the parent again', async (t) => {
  const folder = t.testdir()
  const below = Buffer.alloc(SIZE, 7)
  fs.writeFileSync(join(folder, 'parent.img'), below)
  const backing = { named: 'parent.img', format: 'aio' }
  const image = await newVhd(folder, SIZE, { block_size: '8K' }, backing)
  const device = await openInMemory(new RecordedFile(image), parentDevice(below))
  await device.write(Buffer.alloc(1024, 1), 512, 0)
  await device.trim(0, 8192, 0)
  await device.zero(8192, 1024, 0)
  const content = await contentOf(device)
  t.same(
    [0, 512, 1024, 1536, 8192, 9215, 9216].map((at) => content[at]),
    [7, 0, 0, 7, 0, 0, 7],
  )
  t.same(await device.held(0, 2048), [{ at: 0, length: 512, kind: 'hole' }])
  t.same(await device.held(512, 2048), [{ at: 512, length: 1024, kind: 'data' }])
  await device.close()
})

void t.test(
  'an image grows to what its block table has room for, and its new part is empty',
  async (t) => {
    const folder = t.testdir()
    for (const subformat of ['dynamic', 'fixed']) {
      const settings =
        subformat === 'fixed' ? { subformat } : { subformat, block_size: '8K', maximum: '256K' }
      const file = new RecordedFile(await newVhd(folder, 20_480, settings))
      const device = await openInMemory(file)
      await device.write(Buffer.alloc(20_480, 1), 0, 0)
      await device.resize(200 * 1024)
      t.equal(device.geometry.size, 200 * 1024)
      await device.write(Buffer.alloc(512, 2), 199 * 1024, 0)
      await device.close()
      const disk = readVhd(file.bytes)
      t.equal(inspectVhd(file.bytes, true), undefined)
      t.equal(disk.length, 200 * 1024)
      t.ok(disk.subarray(0, 20_480).every((byte) => byte === 1))
      t.ok(disk.subarray(20_480, 199 * 1024).every((byte) => byte === 0))
      t.equal(disk[199 * 1024], 2)
    }
  },
)

void t.test(
  'on a block device an image grows into what was there before, and ends with it',
  async (t) => {
    const image = await newVhd(t.testdir(), SIZE, { block_size: '4K', maximum: '64K' })
    const device = Buffer.alloc(image.length + 10 * 4096, 0xdd)
    image.copy(device)
    image.copy(device, device.length - 512, 0, 512)
    const file = new RecordedFile(device, false)
    const disk = await openInMemory(file)
    const written: number[] = []
    const fill = async (): Promise<void> => {
      for (let block = 0; block < 16; block += 1) {
        await disk.write(Buffer.alloc(512, 1), block * 4096, 0)
        written.push(block)
      }
    }
    await t.rejects(fill(), { code: 'NO_SPACE', what: /no room for another block/ })
    await disk.close()
    const content = readVhd(file.bytes)
    t.ok(written.length > 3)
    for (let block = 0; block < 16; block += 1) {
      const first = written.includes(block) ? 1 : 0
      t.equal(content[block * 4096], first)
      t.ok(content.subarray(block * 4096 + 512, (block + 1) * 4096).every((byte) => byte === 0))
    }
    t.equal(inspectVhd(file.bytes, true), undefined)
  },
)

const REFUSED: readonly { readonly size: number; readonly code: string; readonly what: RegExp }[] =
  [
    { size: 10_240, code: 'NOT_SUPPORTED', what: /does not shrink/ },
    { size: 20_481, code: 'INVALID', what: /20481 bytes/ },
    { size: 512 * 1024, code: 'NOT_SUPPORTED', what: /no room beyond 262144/ },
    { size: 2041 * 1024 ** 3, code: 'NOT_SUPPORTED', what: /larger than 2040 GiB/ },
  ]

for (const { size, code, what } of REFUSED) {
  void t.test(`a resize to ${size} bytes is refused`, async (t) => {
    const image = await newVhd(t.testdir(), 20_480, { block_size: '8K', maximum: '256K' })
    const device = await openInMemory(new RecordedFile(image))
    await t.rejects(device.resize(size), { code, what })
    t.equal(device.geometry.size, 20_480)
    await device.close()
  })
}

function parentDevice(content: Buffer): BlockDevice | undefined {
  if (content.length === 0) return undefined
  const device = new RamDevice(content.length, false)
  device.write(content, 0)
  return device
}

async function contentOf(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(device.geometry.size)
  await device.read(content, 0)
  return content
}
