import t from 'tap'

import { KiB, MiB } from '../../../core/units.ts'
import { RamDevice } from '../../../drivers/ram.ts'
import { RecordedFile } from '../../support/power-failures.ts'
import { inspectQcow2 } from '../../support/qcow-inspector.ts'
import { contentOf, newQcow, openInMemory } from './qcow-files.ts'

void t.test(
  'a disk that grows gets a larger L1 table, and one that shrinks gives back',
  async (t) => {
    // One L2 table of 64 entries maps 32 KiB, one sector of the L1 table 2 MiB.
    const file = new RecordedFile(newQcow({ size: 16 * KiB, clusterSize: 512 }))
    const device = await openInMemory(file)
    const bytes = Buffer.alloc(16 * KiB, 1)
    await device.write(bytes, 0, 0)
    await device.resize(5 * MiB)
    t.equal(device.geometry.size, 5 * MiB)
    const expected = Buffer.alloc(5 * MiB)
    bytes.copy(expected)
    t.ok((await contentOf(device)).equals(expected), 'what is new reads as zeroes')
    await device.write(bytes, 5 * MiB - bytes.length, 0)
    await device.resize(4 * MiB)
    await device.resize(5 * MiB)
    t.ok((await contentOf(device)).equals(expected), 'what was cut off is gone')
    await device.close()
    t.same(inspectQcow2(file.bytes), { errors: [], leaks: 0 })
    const again = await openInMemory(new RecordedFile(file.bytes), { readOnly: true })
    t.ok((await contentOf(again)).equals(expected))
    await again.close()
  },
)

void t.test('a refcount table that is too small is replaced by a larger one', async (t) => {
  // 64 counts in a block, and 64 blocks in a table of one cluster: 2 MiB of file.
  const image = newQcow({ size: 3 * MiB, clusterSize: 512, refcountBits: 64 })
  const ram = new RamDevice(8 * MiB)
  ram.write(image, 0)
  const before = image.readUInt32BE(56)
  const device = await openInMemory(ram)
  const bytes = Buffer.alloc(64 * KiB)
  for (let at = 0; at < 3 * MiB; at += bytes.length)
    await device.write(bytes.fill(1 + at / bytes.length), at, 0)
  await device.flush()
  const content = await contentOf(device)
  for (let at = 0; at < 3 * MiB; at += bytes.length)
    t.equal(content[at + bytes.length - 1], 1 + at / bytes.length)
  const file = Buffer.alloc(8 * MiB)
  ram.read(file, 0)
  await device.close()
  t.ok(file.readUInt32BE(56) > before, 'the table has more clusters')
  t.same(inspectQcow2(file).errors, [])
})
