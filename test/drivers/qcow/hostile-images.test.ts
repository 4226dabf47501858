import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../../core/fault.ts'
import { KiB } from '../../../core/units.ts'
import {
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
} from '../../../drivers/qcow/internal-snapshots.ts'
import { RecordedFile } from '../../support/power-failures.ts'
import { contentOf, newQcow, openInMemory } from './qcow-files.ts'

/** Of the images here: one cluster each for header, refcount table, refcount block, L1 table, L2 table, data. */
const CLUSTER = 4 * KiB
const TABLE = CLUSTER
const L1 = 3 * CLUSTER
const L2 = 4 * CLUSTER

async function imageWithData(): Promise<Buffer> {
  const file = new RecordedFile(newQcow({}))
  const device = await openInMemory(file)
  await device.write(Buffer.alloc(3 * CLUSTER, 7), 0, 0)
  await device.close()
  return file.bytes
}

const LIES: readonly (readonly [lie: (image: Buffer) => void, why: RegExp])[] = [
  [(i) => i.writeBigUInt64BE(1n << 63n, 24), /no size or offset of a real disk/],
  [(i) => i.writeBigUInt64BE(2n ** 50n, L1), /beyond the end of the file/],
  [(i) => i.writeBigUInt64BE(BigInt(L2 + 512), L1), /no cluster boundary/],
  [(i) => i.writeBigUInt64BE((1n << 60n) | BigInt(L2), L1), /reserved bits/],
  [(i) => i.writeBigUInt64BE(BigInt(TABLE), L1), /two tables lie at 4096/],
  [(i) => i.writeBigUInt64BE(2n ** 50n, TABLE), /refcount table entry 0/],
  [(i) => i.writeBigUInt64BE(BigInt(L1), TABLE), /two tables lie at/],
  [(i) => i.writeBigUInt64BE(2n, 72), /marked as corrupt/],
  [(i) => i.writeUInt32BE(0xffff_ffff, 36), /too large/],
]

for (const [lie, why] of LIES) {
  void t.test(`an image that lies is refused: ${why.source}`, async (t) => {
    const image = await imageWithData()
    lie(image)
    const file = new RecordedFile(image)
    await t.rejects(openInMemory(file), { name: 'Fault', what: why, where: /^image/ })
    t.same(file.events, [], 'and nothing is written to it')
  })
}

void t.test('an entry that cannot be hides its own cluster and no other', async (t) => {
  const lies = [BigInt(L1), 2n ** 40n, BigInt(5 * CLUSTER + 512), BigInt(TABLE)]
  for (const lie of lies) {
    const image = await imageWithData()
    image.writeBigUInt64BE((1n << 63n) | lie, L2 + 8)
    const device = await openInMemory(new RecordedFile(image), { readOnly: true })
    const bytes = Buffer.alloc(CLUSTER)
    await device.read(bytes, 0)
    await device.read(bytes, 2 * CLUSTER)
    t.ok(bytes.equals(Buffer.alloc(CLUSTER, 7)))
    await t.rejects(async () => device.read(bytes, CLUSTER), { code: 'IO' })
    await device.close()
  }
})

void t.test(
  'a write that would land on metadata marks the image as corrupt and ends writing',
  async (t) => {
    const image = await imageWithData()
    image.writeBigUInt64BE((1n << 63n) | BigInt(L1), L2 + 8)
    const file = new RecordedFile(image)
    const device = await openInMemory(file)
    const write = async (at: number) => device.write(Buffer.alloc(512), at, 0)
    await t.rejects(write(CLUSTER), { code: 'IO', what: /corrupt/ })
    await t.rejects(write(0), { code: 'IO', what: /corrupt/ }, 'nothing more is written')
    await device.close()
    t.equal(file.bytes.readBigUInt64BE(72), 2n, 'the corrupt bit is set')
    t.ok(file.bytes.subarray(L1, L1 + CLUSTER).equals(image.subarray(L1, L1 + CLUSTER)))
  },
)

void t.test('a cluster that holds metadata is never given out', async (t) => {
  const image = await imageWithData()
  // The L1 table's cluster has no refcount any more.
  image.writeUInt16BE(0, 2 * CLUSTER + 2 * 3)
  const file = new RecordedFile(image)
  const device = await openInMemory(file)
  await t.rejects(async () => device.write(Buffer.alloc(512), 8 * CLUSTER, 0), {
    code: 'IO',
    what: /corrupt/,
  })
  await device.close()
  t.ok(file.bytes.subarray(L1, L2).equals(image.subarray(L1, L2)))
})

/** Images whose metadata is lied about, with the places of it. */
async function subjects(): Promise<
  { name: string; image: Buffer; places: fc.Arbitrary<number> }[]
> {
  const plain = await imageWithData()
  const usual = fc.oneof(
    fc.nat(111),
    fc.nat(31).map((at) => TABLE + at),
    fc.nat(31).map((at) => 2 * CLUSTER + at),
    fc.nat(15).map((at) => L1 + at),
    fc.nat(255).map((at) => L2 + at),
  )
  const kept = new RecordedFile(plain)
  await createSnapshot(kept, 'image', 'kept', 0, () => undefined)
  const ofSnapshot = (field: number): number => Number(kept.bytes.readBigUInt64BE(field))
  const table = ofSnapshot(64)
  const snapshotPlaces = fc.oneof(
    fc.integer({ min: 60, max: 71 }),
    fc.nat(71).map((at) => table + at),
    fc.nat(15).map((at) => ofSnapshot(table) + at),
    usual,
  )
  const old = new RecordedFile(newQcow({ version: 1 }))
  const device = await openInMemory(old)
  await device.write(Buffer.alloc(3 * CLUSTER, 7), 0, 0)
  await device.close()
  const extended = new RecordedFile(newQcow({ extended: true, clusterSize: 16 * KiB }))
  const wide = await openInMemory(extended)
  await wide.write(Buffer.alloc(3 * CLUSTER, 7), 0, 0)
  await wide.close()
  const extendedPlaces = fc.oneof(
    fc.nat(111),
    fc.nat(15).map((at) => 3 * 16 * KiB + at),
    fc.nat(63).map((at) => 4 * 16 * KiB + at),
  )
  return [
    { name: 'version 3', image: plain, places: usual },
    { name: 'snapshots', image: kept.bytes, places: snapshotPlaces },
    { name: 'version 1', image: old.bytes, places: fc.nat(127) },
    { name: 'extended L2 entries', image: extended.bytes, places: extendedPlaces },
  ]
}

void t.test('whatever is in the tables, using the image ends with data or faults', async (t) => {
  for (const { name, image: good, places } of await subjects()) {
    const changes = fc.array(fc.tuple(places, fc.nat(255)), { minLength: 1, maxLength: 4 })
    await fc.assert(
      fc.asyncProperty(changes, fc.boolean(), async (lies, readOnly) => {
        const image = Buffer.from(good)
        for (const [at, value] of lies) image[at] = value
        const file = new RecordedFile(image)
        await use(file, readOnly).catch(faultOnly)
        if (readOnly) t.same(file.events, [], 'looking changes nothing')
      }),
      { numRuns: 120 },
    )
    t.pass(name)
  }
})

async function use(file: RecordedFile, readOnly: boolean): Promise<void> {
  if (readOnly) await listSnapshots(file, 'image').catch(faultOnly)
  const device = await openInMemory(file, { readOnly })
  if (device.geometry.size > 1024 * KiB) return
  await contentOf(device).catch(faultOnly)
  if (readOnly) return
  const write = async (): Promise<void> => device.write(Buffer.alloc(512, 1), 9 * CLUSTER, 0)
  await write().catch(faultOnly)
  await device.close()
  await deleteSnapshot(file, 'image', 'kept', () => undefined)
}

function faultOnly(error: unknown): void {
  if (!(error instanceof Fault)) throw error
}
