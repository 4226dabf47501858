import t, { type Test } from 'tap'

import type { BlockDevice } from '../../../core/block-device.ts'
import { seededRandom } from '../../../core/seeded-random.ts'
import { KiB } from '../../../core/units.ts'
import { repairUnclosed } from '../../../drivers/qcow/check-qcow.ts'
import {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
} from '../../../drivers/qcow/internal-snapshots.ts'
import { isUnclosed, readHeader } from '../../../drivers/qcow/open-qcow2.ts'
import { momentsOf, RecordedFile } from '../../support/power-failures.ts'
import { inspectQcow2 } from '../../support/qcow-inspector.ts'
import { contentOf, newQcow, openInMemory, type Variant } from './qcow-files.ts'

const SIZE = 128 * KiB
const SEED = Number(process.env['POWER_FAILURE_SEED'] ?? Date.now() % 1_000_000)
const silent = (): void => undefined

const VARIANTS: readonly (readonly [name: string, variant: Variant])[] = [
  ['version 3', {}],
  ['version 2', { version: 2 }],
  ['clusters of 512 bytes', { clusterSize: 512 }],
  ['refcounts of 4 bits', { refcountBits: 4 }],
  ['refcounts of 64 bits', { refcountBits: 64, clusterSize: 1 * KiB }],
  ['extended L2 entries', { extended: true, clusterSize: 16 * KiB }],
]

/** Writes every `step`-th kibibyte of the disk. */
async function scribble(file: RecordedFile, value: number, step: number): Promise<Buffer> {
  const device = await openInMemory(file)
  for (let at = 0; at < SIZE; at += step * KiB) await device.write(Buffer.alloc(KiB, value), at, 0)
  await device.zero(SIZE / 2, 10 * KiB, 0)
  const content = await contentOf(device)
  await device.close()
  return content
}

async function shown(file: BlockDevice): Promise<Buffer> {
  const device = await openInMemory(file, { readOnly: true })
  const content = await contentOf(device)
  await device.close()
  return content
}

function sound(t: Test, file: RecordedFile, when: string): void {
  t.same(inspectQcow2(file.bytes), { errors: [], leaks: 0 }, when)
}

for (const [name, variant] of VARIANTS) {
  void t.test(`snapshots are made, applied and deleted: ${name}`, async (t) => {
    const file = new RecordedFile(newQcow({ ...variant, size: SIZE }))
    const first = await scribble(file, 1, 5)
    await createSnapshot(file, 'image', 'first', 1_000, silent)
    sound(t, file, 'after the first snapshot')
    t.ok((await shown(file)).equals(first), 'making one changes nothing')
    const second = await scribble(file, 2, 3)
    sound(t, file, 'after writes over a snapshot')
    await createSnapshot(file, 'image', 'second', 2_500, silent)
    t.match(await listSnapshots(file, 'image'), [
      { id: '1', name: 'first', seconds: 1, diskSize: SIZE },
      { id: '2', name: 'second', seconds: 2, diskSize: SIZE },
    ])
    const third = await scribble(file, 3, 7)
    await applySnapshot(file, 'image', 'first', silent)
    sound(t, file, 'after going back')
    t.ok((await shown(file)).equals(first), 'the disk is what it was')
    await scribble(file, 4, 1)
    await applySnapshot(file, 'image', '2', silent)
    t.ok((await shown(file)).equals(second), 'by its id, and writes since have not touched it')
    await deleteSnapshot(file, 'image', 'first', silent)
    sound(t, file, 'after one was deleted')
    t.match(await listSnapshots(file, 'image'), [{ id: '2', name: 'second' }])
    t.ok((await shown(file)).equals(second))
    await deleteSnapshot(file, 'image', 'second', silent)
    sound(t, file, 'after all were deleted')
    t.same(await listSnapshots(file, 'image'), [])
    t.ok((await shown(file)).equals(second))
    t.notOk(third.equals(second))
  })
}

void t.test('what cannot be done is refused, and not a byte is written', async (t) => {
  const plain = new RecordedFile(newQcow({}))
  await scribble(plain, 1, 3)
  await createSnapshot(plain, 'image', 'there', 0, silent)
  const narrow = new RecordedFile(newQcow({ refcountBits: 1 }))
  await scribble(narrow, 1, 3)
  const wrong = Buffer.from(plain.bytes)
  const block = Number(wrong.readBigUInt64BE(Number(wrong.readBigUInt64BE(48))))
  wrong.writeUInt16BE(0, block + 2 * 5)
  const cases: readonly (readonly [
    image: Buffer,
    work: (file: RecordedFile) => Promise<void>,
    what: RegExp,
  ])[] = [
    [plain.bytes, (f) => createSnapshot(f, 'image', 'there', 0, silent), /already/],
    [plain.bytes, (f) => createSnapshot(f, 'image', '1', 0, silent), /already/],
    [plain.bytes, (f) => createSnapshot(f, 'image', '', 0, silent), /cannot have the name/],
    [plain.bytes, (f) => createSnapshot(f, 'image', 'x'.repeat(256), 0, silent), /cannot have/],
    [plain.bytes, (f) => applySnapshot(f, 'image', 'gone', silent), /no snapshot "gone"/],
    [plain.bytes, (f) => deleteSnapshot(f, 'image', 'gone', silent), /no snapshot "gone"/],
    [narrow.bytes, (f) => createSnapshot(f, 'image', 'a', 0, silent), /too narrow/],
    [newQcow({ version: 1 }), (f) => createSnapshot(f, 'image', 'a', 0, silent), /QCOW 1/],
    [newQcow({ data: 'raw' }), (f) => createSnapshot(f, 'image', 'a', 0, silent), /data file/],
    [wrong, (f) => deleteSnapshot(f, 'image', 'there', silent), /not sound/],
  ]
  for (const [image, work, what] of cases) {
    const file = new RecordedFile(image)
    await t.rejects(work(file), { name: 'Fault', what })
    t.same(
      file.events.filter(({ kind }) => kind === 'write' || kind === 'resize'),
      [],
    )
  }
})

void t.test('a write never lands on a table that only a snapshot uses', async (t) => {
  const file = new RecordedFile(newQcow({ size: SIZE }))
  await scribble(file, 1, 3)
  const l2At = Number(file.bytes.readBigUInt64BE(3 * 4 * KiB) & 0xff_ffff_ffff_fe00n)
  await createSnapshot(file, 'image', 'a', 0, silent)
  await scribble(file, 2, 4)
  const image = Buffer.from(file.bytes)
  const own = Number(
    image.readBigUInt64BE(Number(image.readBigUInt64BE(40))) & 0xff_ffff_ffff_fe00n,
  )
  t.not(own, l2At, 'the disk has a table of its own')
  image.writeBigUInt64BE((1n << 63n) | BigInt(l2At), own)
  const lied = new RecordedFile(image)
  const device = await openInMemory(lied)
  const write = async (): Promise<void> => device.write(Buffer.alloc(512), 0, 0)
  await t.rejects(write, { code: 'IO', what: /corrupt/ })
  await device.close()
  t.ok(lied.bytes.subarray(l2At, l2At + 4 * KiB).equals(image.subarray(l2At, l2At + 4 * KiB)))
})

const SAMPLES = 2 * Number(process.env['POWER_FAILURES'] ?? 1)

for (const [name, variant] of VARIANTS.slice(0, 3)) {
  void t.test(`a power failure leaves the old or the new: ${name} (seed ${SEED})`, async (t) => {
    const base = new RecordedFile(newQcow({ ...variant, size: SIZE }))
    const kept = await scribble(base, 1, 5)
    await createSnapshot(base, 'image', 'kept', 0, silent)
    const disk = await scribble(base, 2, 3)
    const works: readonly (readonly [
      what: string,
      work: (file: RecordedFile) => Promise<void>,
      disks: readonly Buffer[],
    ])[] = [
      ['create', (file) => createSnapshot(file, 'image', 'new', 0, silent), [disk]],
      ['apply', (file) => applySnapshot(file, 'image', 'kept', silent), [disk, kept]],
      ['delete', (file) => deleteSnapshot(file, 'image', 'kept', silent), [disk]],
    ]
    let states = 0
    for (const [what, work, disks] of works) {
      const file = new RecordedFile(base.bytes)
      await work(file)
      const moments = momentsOf(base.bytes, file.events, SAMPLES, seededRandom(SEED))
      const counts = new Set<number>()
      for (const { states: left } of moments) {
        for (const state of left) {
          states += 1
          counts.add(await judge(what, state, disks, kept, variant.version !== 2))
        }
      }
      t.same([...counts].sort(), { create: [1, 2], apply: [1], delete: [0, 1] }[what], what)
    }
    t.comment(`${states} states`)
  })
}

/** @returns how many snapshots there are */
async function judge(
  what: string,
  image: Buffer,
  disks: readonly Buffer[],
  kept: Buffer,
  repairs: boolean,
): Promise<number> {
  const file = new RecordedFile(image)
  if (isUnclosed((await readHeader(file, 'image')).header)) await repairUnclosed(file, 'image')
  const { errors } = inspectQcow2(file.bytes)
  if (errors.length > 0) throw new Error(`${what}: ${errors[0]}`)
  const disk = await shown(file)
  if (!disks.some((each) => each.equals(disk))) throw new Error(`${what}: another disk`)
  // Whoever writes now must not reach what a snapshot holds.
  await scribble(file, 9, 16)
  const after = inspectQcow2(file.bytes)
  if (after.errors.length > 0) throw new Error(`${what}, then writes: ${after.errors[0]}`)
  const snapshots = await listSnapshots(file, 'image')
  if (!repairs) await repairUnclosed(file, 'image')
  for (const { name } of snapshots) {
    await applySnapshot(file, 'image', name, silent)
    const expected = name === 'kept' ? kept : disks[0]
    if (!(await shown(file)).equals(expected ?? kept)) throw new Error(`${what}: ${name} changed`)
  }
  return snapshots.length
}
