/**
 * Internal snapshots of a QCOW2 image, made, applied and deleted while nobody uses it (qcow2.rst, "Snapshots"; decision 20).
 *
 * Each change goes the same way (`->` is a flush): the new tables, in clusters that were free -> the dirty bit -> counts
 * rise to what the image needs before and after the change, with the flags that follow from them -> one write of the header
 * names the new tables -> everything is counted anew, counts fall to that, the dirty bit goes.
 *
 * Invariants:
 *  - Whenever the power fails, the image shows what it showed before, with the snapshots that it had, or what it is to show.
 *  - No cluster is ever counted less than the tables on disk refer to it, and none that two tables use has bit 63 set.
 *  - After a power failure the dirty bit makes the next writer count anew. Version 2 has no such bit: there leaks stay, and
 *    clusters that are copied although nobody shares them, until a check repairs it.
 */

import { assert } from '../../core/assert.ts'
import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { CORRUPT, DIRTY, type Qcow2Header } from '../../formats/qcow/header.ts'
import { l1Offset } from '../../formats/qcow/l2-table.ts'
import { l1EntriesFor } from '../../formats/qcow/layout.ts'
import { mostRefcount } from '../../formats/qcow/refcounts.ts'
import { parseSnapshots, snapshotBytes, type Snapshot } from '../../formats/qcow/snapshots.ts'
import type { Progress } from '../image-format.ts'
import { repairUnclosed } from './check-qcow.ts'
import { HeaderSector, type HeaderPatch } from './header-sector.ts'
import { HostFile } from './host-file.ts'
import { mend, raise } from './mending.ts'
import { isUnclosed, openQcow2, readHeader, USUAL_CACHE } from './open-qcow2.ts'
import { readSurveyed } from './open-tables.ts'
import { clearUnknownFeatures, prepareForChanges } from './preparation.ts'
import { survey, type SurveyedTables } from './survey.ts'
import { versionOf } from './version.ts'

/** Bytes that QEMU keeps of a name, less the zero behind it. */
const LONGEST_NAME = 255
/** What a table may hold (formats/qcow/header.ts refuses more). */
const MOST_SNAPSHOTS = 65_536

/** An image whose structures are being changed; read anew after each step that moves tables. */
interface Subject {
  readonly device: BlockDevice
  readonly path: string
  readonly file: HostFile
  readonly header: Qcow2Header
  readonly start: Buffer
  readonly tables: SurveyedTables
}

interface SoundSubject extends Subject {
  /** References by host cluster. */
  readonly counts: Uint32Array
}

export async function listSnapshots(
  device: BlockDevice,
  path: string,
): Promise<readonly Snapshot[]> {
  await refuseVersion1(device, path)
  return (await subjectOf(device, path)).tables.snapshots
}

/** @param timeMs since the Epoch @throws Fault that says why there is none; then the image is as it was */
export async function createSnapshot(
  device: BlockDevice,
  path: string,
  name: string,
  timeMs: number,
  progress: Progress,
): Promise<void> {
  const before = await soundSubject(device, path, progress)
  const { snapshots } = before.tables
  refuseName(before, name)
  const numbers = snapshots.map(({ id }) => (/^\d{1,15}$/.test(id) ? Number(id) : 0))
  const id = String(Math.max(0, ...numbers) + 1)
  const { l1Entries, layout, size } = before.header
  const entry = (l1At: number): Buffer =>
    snapshotBytes({ id, name, l1At, l1Entries, timeMs, diskSize: size })
  const old = Buffer.concat(snapshots.map(({ bytes }) => bytes))
  // Counting comes first: what must be refused is refused before anything is written.
  await refuseNarrowCounts(before, before.tables.l1, progress)
  const { clusterSize } = layout
  const lengths = [Math.max(l1Entries * 8, clusterSize), old.length + entry(0).length]
  const [l1At = 0, tableAt = 0] = await reserve(before, lengths, clearUnknownFeatures)
  const subject = await subjectOf(device, path)
  const table = Buffer.concat([old, entry(l1At)])
  const l1 = sharedL1(subject.tables.l1, l1Entries)
  await subject.file.write(l1, l1At)
  await subject.file.write(table, tableAt)
  const count = snapshots.length + 1
  const planned = withSnapshots(subject, table, tableAt, count)
  await change(planned, { snapshots: { at: tableAt, count } }, true, progress)
}

/** The disk becomes what it was when the snapshot was made; the snapshot stays. @throws Fault as above */
export async function applySnapshot(
  device: BlockDevice,
  path: string,
  name: string,
  progress: Progress,
): Promise<void> {
  const before = await soundSubject(device, path, progress)
  const { header } = before
  const chosen = find(before, name)
  const size = chosen.diskSize ?? header.size
  const entries = l1EntriesFor(size, header.layout)
  const source = Buffer.alloc(chosen.l1Entries * 8)
  await before.file.read(source, chosen.l1At)
  const l1 = Buffer.alloc(entries * 8)
  source.copy(l1)
  await refuseNarrowCounts(before, l1, progress)
  const length = Math.max(l1.length, header.layout.clusterSize)
  const [l1At = 0] = await reserve(before, [length], prepareForChanges)
  const subject = await subjectOf(device, path)
  await clearFlags(subject, l1, entries)
  await subject.file.write(sharedL1(l1, entries), l1At)
  // Both the disk as it is and as it will be: the latter as one more snapshot.
  const coming = { ...chosen, l1At, l1Entries: entries }
  const tables = { ...subject.tables, snapshots: [...subject.tables.snapshots, coming] }
  await change({ ...subject, tables }, { l1: { at: l1At, entries }, size }, true, progress)
}

/** @throws Fault as above */
export async function deleteSnapshot(
  device: BlockDevice,
  path: string,
  name: string,
  progress: Progress,
): Promise<void> {
  const before = await soundSubject(device, path, progress)
  const chosen = find(before, name)
  const left = before.tables.snapshots.filter((snapshot) => snapshot !== chosen)
  const table = Buffer.concat(left.map(({ bytes }) => bytes))
  const lengths = left.length === 0 ? [] : [table.length]
  const [tableAt = 0] = await reserve(before, lengths, clearUnknownFeatures)
  const subject = await subjectOf(device, path)
  if (left.length > 0) await subject.file.write(table, tableAt)
  const planned = withSnapshots(subject, table, tableAt, left.length)
  // Counts only fall here, and flags are set only when nobody else names the clusters any more.
  await change(planned, { snapshots: { at: tableAt, count: left.length } }, false, progress)
}

async function subjectOf(device: BlockDevice, path: string): Promise<Subject> {
  const { header, start } = await readHeader(device, path)
  const file = new HostFile(device, path)
  return { device, path, file, header, start, tables: await readSurveyed(file, header) }
}

/** The image, if it can have snapshots and nothing is wrong with it. */
async function soundSubject(
  device: BlockDevice,
  path: string,
  progress: Progress,
): Promise<SoundSubject> {
  await refuseVersion1(device, path)
  if (isUnclosed((await readHeader(device, path)).header)) await repairUnclosed(device, path)
  const subject = await subjectOf(device, path)
  const { file, header, tables } = subject
  if (header.dataFile !== undefined) {
    throw new Fault('NOT_SUPPORTED', 'an image with an external data file has no snapshots', {
      where: path,
      remedy: 'make an overlay: colotap image snapshot',
    })
  }
  const { counts, damage, wrong } = await survey(file, header, tables, progress)
  const [fault] = [...damage.list(), ...wrong.list()]
  if ((header.incompatible & CORRUPT) !== 0n || fault !== undefined) {
    throw new Fault('NOT_PERMITTED', `the image is not sound: ${fault ?? 'it says so itself'}`, {
      where: path,
      remedy: 'repair it first: colotap image check --repair all',
    })
  }
  return { ...subject, counts }
}

async function refuseVersion1(device: BlockDevice, path: string): Promise<void> {
  if ((await versionOf(device)) !== 1) return
  throw new Fault('NOT_SUPPORTED', 'QCOW 1 has no internal snapshots', {
    where: path,
    remedy: 'make an overlay: colotap image snapshot',
  })
}

function refuseName({ path, tables: { snapshots } }: Subject, name: string): void {
  if (name === '' || name.includes('\0') || Buffer.byteLength(name) > LONGEST_NAME) {
    throw new Fault('INVALID', `a snapshot cannot have the name "${name}"`, {
      where: path,
      remedy: `give a name of 1 to ${LONGEST_NAME} bytes`,
    })
  }
  if (snapshots.some((other) => other.name === name || other.id === name)) {
    throw new Fault('IN_USE', `there is a snapshot "${name}" already`, {
      where: path,
      remedy: 'choose another name, or delete it first',
    })
  }
  if (snapshots.length >= MOST_SNAPSHOTS)
    throw new Fault('NO_SPACE', 'the image has as many snapshots as it can', { where: path })
}

/** By its name, or where no name fits by its id. */
function find({ path, tables: { snapshots } }: Subject, name: string): Snapshot {
  const named = snapshots.filter((snapshot) => snapshot.name === name)
  const [chosen, another] = named.length > 0 ? named : snapshots.filter(({ id }) => id === name)
  const remedy = 'list them: colotap image internal-snapshot'
  if (chosen === undefined)
    throw new Fault('NOT_FOUND', `there is no snapshot "${name}"`, { where: path, remedy })
  if (another !== undefined)
    throw new Fault('INVALID', `"${name}" names several snapshots`, { where: path, remedy })
  return chosen
}

/** Whether every cluster can be counted once more for each reference from `l1`. */
async function refuseNarrowCounts(
  { counts, file, header, path, tables }: SoundSubject,
  l1: Buffer,
  progress: Progress,
): Promise<void> {
  const { layout } = header
  const most = mostRefcount(layout.refcountBits)
  const alone = { ...header, l1Entries: l1.length / 8 }
  const more = await survey(file, alone, { ...tables, l1, snapshots: [] }, progress)
  for (let cluster = 1; cluster < more.counts.length; cluster += 1) {
    if ((counts[cluster] ?? 0) + (more.counts[cluster] ?? 0) <= most) continue
    throw new Fault('NOT_SUPPORTED', `refcounts of ${layout.refcountBits} bits are too narrow`, {
      where: path,
      remedy: 'convert the image to one with wider refcounts: qemu-img convert -o refcount_bits=16',
    })
  }
}

/** Clusters for new tables of so many bytes, counted once, durably. What the format wants done before a change is done. */
async function reserve(
  { device, path }: Subject,
  lengths: readonly number[],
  prepare: typeof prepareForChanges,
): Promise<number[]> {
  const image = await openQcow2(device, {
    ...{ path, readOnly: false, logger: SILENT, unmap: false, cache: USUAL_CACHE },
    openBacking: () => Promise.resolve(undefined),
    openDataFile: () => Promise.reject(new Fault('NOT_SUPPORTED', 'a data file')),
  })
  const { file, format, metadata, qcow2 } = image
  assert(metadata !== undefined && qcow2 !== undefined, 'it is a QCOW2 image open for writing')
  await prepare(image)
  const places: number[] = []
  for (const length of lengths) {
    const clusters = Math.ceil(length / format.layout.clusterSize)
    places.push((await qcow2.allocator.allocateWhole(clusters)).at)
  }
  await metadata.settle()
  await file.fit()
  return places
}

/** The beginning of an L1 table, whose L2 tables are not its own. */
function sharedL1(l1: Buffer, entries: number): Buffer {
  const shared = Buffer.from(l1.subarray(0, entries * 8))
  for (let at = 0; at < shared.length; at += 8) shared.writeUInt8(shared.readUInt8(at) & 0x7f, at)
  return shared
}

/** Takes bit 63 from every entry of the L2 tables that `l1` names: whoever comes to use them does not own what they map. */
async function clearFlags({ file, header }: Subject, l1: Buffer, entries: number): Promise<void> {
  const { l2Bytes, l2EntryBytes } = header.layout
  const table = Buffer.alloc(l2Bytes)
  for (let index = 0; index < entries; index += 1) {
    const at = l1Offset(l1, index)
    if (at === 0) continue
    await file.read(table, at)
    let changed = false
    for (let entry = 0; entry < l2Bytes; entry += l2EntryBytes) {
      const byte = table.readUInt8(entry)
      if (byte < 0x80) continue
      table.writeUInt8(byte & 0x7f, entry)
      changed = true
    }
    if (changed) await file.write(Buffer.from(table), at)
  }
}

/** The image as it will be with that snapshot table. */
function withSnapshots(subject: Subject, table: Buffer, at: number, count: number): Subject {
  const { header, file, tables } = subject
  const { snapshots } = parseSnapshots(table, count, header.layout, file.size)
  return {
    ...subject,
    header: { ...header, snapshotsAt: at, snapshotCount: count },
    tables: { ...tables, snapshots, snapshotTableBytes: table.length },
  }
}

/** @param planned what all counts have to suffice for, when `rises` */
async function change(
  planned: Subject,
  patch: HeaderPatch,
  rises: boolean,
  progress: Progress,
): Promise<void> {
  const { device, file, header, path, start, tables } = planned
  const sector = new HeaderSector(file, start)
  const dirty = header.version === 3 ? { incompatible: header.incompatible | DIRTY } : {}
  await sector.write(dirty)
  if (rises) await raise(file, header, tables, await survey(file, header, tables, progress))
  await sector.write({ ...patch, ...dirty })
  const after = await subjectOf(device, path)
  const found = await survey(after.file, after.header, after.tables, progress)
  await mend(after.file, after.header, after.start, after.tables, found, 'all')
}
