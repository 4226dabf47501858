import t from 'tap'

import { FAST_ZERO, NO_HOLE, type BlockDevice } from '../../../core/block-device.ts'
import { KiB } from '../../../core/units.ts'
import { Guard } from '../../../drivers/guard.ts'
import { RamDevice } from '../../../drivers/ram.ts'
import { RecordedFile } from '../../support/power-failures.ts'
import { inspectQcow2 } from '../../support/qcow-inspector.ts'
import { checkAgainstModel, pattern } from '../device-model.ts'
import { contentOf, newQcow, openInMemory, type Variant } from './qcow-files.ts'

const SIZE = 64 * KiB

interface Subject {
  readonly name: string
  readonly variant: Variant
  /** Bytes of the parent, if there is one. */
  readonly parent?: number
  readonly discard?: 'ignore'
}

const SUBJECTS: readonly Subject[] = [
  { name: 'version 3', variant: {} },
  { name: 'version 2', variant: { version: 2 } },
  { name: 'version 1', variant: { version: 1 } },
  { name: 'clusters of 512 bytes', variant: { clusterSize: 512 } },
  { name: 'a cluster larger than the disk', variant: { clusterSize: 128 * KiB } },
  { name: 'refcounts of one bit', variant: { refcountBits: 1, clusterSize: 1 * KiB } },
  { name: 'refcounts of 64 bits', variant: { refcountBits: 64, clusterSize: 512 } },
  { name: 'extended L2 entries', variant: { extended: true, clusterSize: 16 * KiB } },
  { name: 'space that is kept', variant: {}, discard: 'ignore' },
  { name: 'a data file', variant: { data: 'guarded by the image' } },
  { name: 'a raw data file', variant: { data: 'raw' } },
  { name: 'an overlay', variant: {}, parent: SIZE },
  { name: 'an overlay of a shorter parent', variant: {}, parent: 20_999 },
  { name: 'an overlay of version 2', variant: { version: 2 }, parent: 20_999 },
  { name: 'an overlay of version 1', variant: { version: 1 }, parent: 20_992 },
  {
    name: 'an overlay with extended L2 entries',
    variant: { extended: true, clusterSize: 16 * KiB },
    parent: 20_999,
  },
]

for (const { name, variant, parent, discard } of SUBJECTS) {
  void t.test(`${name}: does what an array of bytes does, and leaves a sound image`, async (t) => {
    const below = pattern(parent ?? 0, 5)
    const image = newQcow({ ...variant, size: SIZE }, parent !== undefined)
    const file = new RecordedFile(image)
    const dataFile = variant.data === undefined ? undefined : new RamDevice(SIZE)
    const around = { dataFile, ...(discard === undefined ? {} : { discard }) }
    const device = new Guard(
      await openInMemory(file, { ...around, parent: parentDevice(below) }),
      false,
    )
    const initial = Buffer.alloc(SIZE)
    below.copy(initial)
    t.ok((await contentOf(device)).equals(initial), 'it shows its parent at first')

    await checkAgainstModel(device, { size: SIZE, unit: 512, runs: 10 })
    const content = await contentOf(device)
    const rawContent = dataFile === undefined ? undefined : await contentOf(dataFile)
    await device.close()
    if (variant.version !== 1) t.same(inspectQcow2(file.bytes), { errors: [], leaks: 0 })
    if (variant.data === 'raw') {
      t.ok(rawContent?.subarray(0, content.length).equals(content), 'the data file is the disk')
    }

    const again = await openInMemory(new RecordedFile(file.bytes), {
      parent: parentDevice(below),
      dataFile: rawContent === undefined ? undefined : parentDevice(rawContent),
    })
    t.ok((await contentOf(again)).equals(content), 'and so after it is opened again')
    await again.close()
  })
}

void t.test('opening, reading and closing an image changes no byte of it', async (t) => {
  for (const version of [1, 2, 3] as const) {
    const file = new RecordedFile(newQcow({ version }))
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

void t.test('a file is as long as it needs to be when it is closed', async (t) => {
  const image = newQcow({})
  const file = new RecordedFile(image)
  const device = await openInMemory(file)
  await device.write(Buffer.alloc(512, 1), 0, 0)
  t.ok(file.bytes.length > image.length + 512 * KiB, 'it grows ahead')
  await device.close()
  t.equal(file.bytes.length, image.length + 2 * 4096, 'an L2 table and a cluster')
})

void t.test('space that is trimmed is used again', async (t) => {
  const file = new RecordedFile(newQcow({}))
  const device = await openInMemory(file)
  const bytes = Buffer.alloc(64 * KiB, 1)
  for (let round = 0; round < 8; round += 1) {
    await device.write(bytes, 0, 0)
    await device.trim(0, bytes.length, 0)
    await device.flush()
    // What the flush made free is taken back behind it.
    await device.read(Buffer.alloc(512), 0)
    await device.flush()
  }
  await device.close()
  t.ok(file.bytes.length < 256 * KiB, `${file.bytes.length} bytes`)
})

void t.test('a zeroed range that is to keep its space keeps its clusters', async (t) => {
  const file = new RecordedFile(newQcow({}))
  const device = await openInMemory(file)
  await device.write(Buffer.alloc(8 * KiB, 1), 0, 0)
  await device.zero(0, 4 * KiB, NO_HOLE)
  await device.zero(4 * KiB, 4 * KiB, 0)
  t.same(await device.status(0, 12 * KiB), [
    { at: 0, length: 4 * KiB, kind: 'zero' },
    { at: 4 * KiB, length: 8 * KiB, kind: 'hole' },
  ])
  await device.close()
})

void t.test('zeroing that would have to write fails at once where it must be fast', async (t) => {
  const device = await openInMemory(new RecordedFile(newQcow({})))
  await device.write(Buffer.alloc(8 * KiB, 1), 0, 0)
  await t.rejects(device.zero(100, 8000, FAST_ZERO), { code: 'NOT_SUPPORTED' })
  await device.zero(0, 4 * KiB, FAST_ZERO)
  t.equal(
    (await contentOf(device)).findIndex((byte) => byte !== 0),
    4 * KiB,
  )
  await device.close()
})

void t.test('writes beside each other in one new cluster do not undo each other', async (t) => {
  const parent = pattern(64 * KiB, 3)
  const device = await openInMemory(new RecordedFile(newQcow({ size: 64 * KiB }, true)), {
    parent: parentDevice(parent),
  })
  const expected = Buffer.from(parent)
  const writes = Array.from({ length: 32 }, (_, index) => {
    expected.fill(200 + index, index * 700, index * 700 + 300)
    return Promise.resolve(device.write(Buffer.alloc(300, 200 + index), index * 700, 0))
  })
  await Promise.all(writes)
  t.ok((await contentOf(device)).equals(expected))
  await device.close()
})

void t.test('a write that fails gives its clusters back and fails alone', async (t) => {
  const file = new RecordedFile(newQcow({}))
  const device = await openInMemory(file)
  await device.write(Buffer.alloc(4 * KiB, 1), 0, 0)
  const write = file.write.bind(file)
  file.write = () => Promise.reject(new Error('no'))
  await t.rejects(Promise.resolve(device.write(Buffer.alloc(4 * KiB, 2), 8 * KiB, 0)))
  file.write = write
  await device.write(Buffer.alloc(4 * KiB, 3), 16 * KiB, 0)
  const content = await contentOf(device)
  t.equal(content[0], 1)
  t.equal(content[8 * KiB], 0)
  t.equal(content[16 * KiB], 3)
  await device.close()
  t.same(inspectQcow2(file.bytes), { errors: [], leaks: 0 })
})

void t.test('what is in memory is served and written in the same turn', async (t) => {
  const ram = new RamDevice(8 * 1024 * KiB)
  ram.write(newQcow({}), 0)
  const device = await openInMemory(ram)
  await device.write(Buffer.alloc(4 * KiB, 1), 0, 0)
  t.equal(device.write(Buffer.alloc(512, 2), 1024, 0), undefined)
  t.equal(device.write(Buffer.alloc(4 * KiB, 2), 40 * KiB, 0), undefined, 'also where it is new')
  const bytes = Buffer.alloc(4 * KiB)
  t.equal(device.read(bytes, 40 * KiB), undefined)
  t.ok(bytes.equals(Buffer.alloc(4 * KiB, 2)))
  await device.close()
})

void t.test('one that only reads refuses to be anything else', async (t) => {
  const device = await openInMemory(new RecordedFile(newQcow({})), { readOnly: true })
  t.same([device.can.trim, device.can.zero, device.can.resize], [false, false, false])
  t.equal(device.geometry.readOnly, true)
  await device.close()
})

function parentDevice(content: Buffer): BlockDevice | undefined {
  if (content.length === 0) return undefined
  const device = new RamDevice(content.length)
  device.write(content, 0)
  return device
}
