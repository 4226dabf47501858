/**
 * Reads the tables of a QCOW2 image that stay in memory, and looks at all that can be looked at before the image is used.
 *
 * Invariant: what is returned names only places within the file; no two tables lie in one cluster.
 */

import { Fault } from '../../core/fault.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import { parseBitmapDirectory, parseBitmapsExtension } from '../../formats/qcow/bitmaps.ts'
import { EXTENSION } from '../../formats/qcow/header-extensions.ts'
import { BITMAPS, type Qcow2Header } from '../../formats/qcow/header.ts'
import { l1Objection, l1Offset } from '../../formats/qcow/l2-table.ts'
import { roundDown, roundUp } from '../../formats/qcow/layout.ts'
import { MOST_SNAPSHOT_TABLE, parseSnapshots, type Snapshot } from '../../formats/qcow/snapshots.ts'
import type { HostFile } from './host-file.ts'
import type { SurveyedTables } from './survey.ts'
import { MetadataPlaces } from './metadata-places.ts'

/** Clusters of tables that an image may have: enough for the largest L1 table, full. */
export const MOST_PLACES = 8 * MiB

/** Entries in the L1 tables of all snapshots together: 256 MiB, which are read one table after the other. */
const MOST_SNAPSHOT_ENTRIES = 32 * MiB

export interface OpenTables {
  /** The active L1 table, with zeroes up to the end of its last sector. */
  readonly l1: Buffer
  /** Offsets of refcount blocks, 0 where there is none. */
  readonly refcountTable: Float64Array
  readonly snapshots: readonly Snapshot[]
  readonly places: MetadataPlaces
}

/** @throws Fault INVALID that says what is wrong */
export async function readTables(file: HostFile, header: Qcow2Header): Promise<OpenTables> {
  const l1 = await readL1(file, header)
  const refcountTable = await readRefcountTable(file, header)
  const { snapshots, length } = await readSnapshots(file, header)
  const { clusterSize } = header.layout
  const found: number[] = []
  const add = (at: number, bytes: number): void => {
    if (found.length + bytes / clusterSize > MOST_PLACES)
      throw new Fault('INVALID', 'the tables of this image are absurdly large')
    const start = roundDown(at, clusterSize)
    for (let cluster = start; cluster < at + bytes; cluster += clusterSize) found.push(cluster)
  }
  add(0, clusterSize)
  add(header.l1At, header.l1Entries * 8)
  add(header.refcountTableAt, header.refcountTableClusters * clusterSize)
  for (const block of refcountTable) if (block !== 0) add(block, clusterSize)
  const active = new Set<number>()
  for (let index = 0; index < header.l1Entries; index += 1) {
    const at = l1Offset(l1, index)
    if (at === 0) continue
    add(at, clusterSize)
    active.add(at)
  }
  if (snapshots.length > 0) add(header.snapshotsAt, length)
  for (const snapshot of snapshots) add(snapshot.l1At, snapshot.l1Entries * 8)
  const pinned = await snapshotTables(file, header, snapshots)
  // A snapshot may share a table with the disk and with other snapshots, and with nothing else.
  for (const at of pinned) if (!active.has(at)) add(at, clusterSize)
  await addBitmaps(file, header, add)
  const places = new MetadataPlaces(clusterSize, Float64Array.from(found), pinned)
  const twice = places.duplicate()
  if (twice !== undefined) throw new Fault('INVALID', `two tables lie at ${twice}`)
  return { l1, refcountTable, snapshots, places }
}

/** The tables as a check looks at them: only what bounds memory and reading is insisted on. */
export async function readSurveyed(file: HostFile, header: Qcow2Header): Promise<SurveyedTables> {
  const l1 = Buffer.alloc(header.l1Entries * 8)
  await file.read(l1, header.l1At)
  const refcountTable = await readRefcountTable(file, header, true)
  const { snapshots, length } = await readSnapshots(file, header)
  return { l1, refcountTable, snapshots, snapshotTableBytes: length }
}

async function readL1(file: HostFile, header: Qcow2Header): Promise<Buffer> {
  const length = header.l1Entries * 8
  const l1 = Buffer.alloc(roundUp(length, SECTOR))
  await file.read(l1, header.l1At)
  l1.fill(0, length)
  for (let index = 0; index < header.l1Entries; index += 1) {
    const reason = l1Objection(l1, index, header.layout, file.size)
    if (reason !== undefined) throw new Fault('INVALID', `L1 entry ${index}: ${reason}`)
  }
  return l1
}

/** @param lenient take an entry that names no cluster of the file as one that names none */
async function readRefcountTable(
  file: HostFile,
  header: Qcow2Header,
  lenient = false,
): Promise<Float64Array> {
  const { clusterSize } = header.layout
  const bytes = Buffer.alloc(header.refcountTableClusters * clusterSize)
  await file.read(bytes, header.refcountTableAt)
  const table = new Float64Array(bytes.length / 8)
  const end = roundUp(file.size, clusterSize)
  for (let index = 0; index < table.length; index += 1) {
    const at = bytes.readUInt32BE(index * 8) * 2 ** 32 + bytes.readUInt32BE(index * 8 + 4)
    const impossible = at % clusterSize !== 0 || (at !== 0 && at >= end)
    if (impossible && lenient) continue
    if (impossible)
      throw new Fault('INVALID', `refcount table entry ${index} names no cluster of the file`)
    table[index] = at
  }
  return table
}

async function readSnapshots(
  file: HostFile,
  header: Qcow2Header,
): Promise<{ snapshots: readonly Snapshot[]; length: number }> {
  if (header.snapshotCount === 0) return { snapshots: [], length: 0 }
  const length = Math.min(file.size - header.snapshotsAt, MOST_SNAPSHOT_TABLE)
  const bytes = Buffer.alloc(length)
  await file.read(bytes, header.snapshotsAt)
  return parseSnapshots(bytes, header.snapshotCount, header.layout, file.size)
}

/** Where the L2 tables of all snapshots are; what names no cluster of the file is the survey's to report. */
async function snapshotTables(
  file: HostFile,
  { layout }: Qcow2Header,
  snapshots: readonly Snapshot[],
): Promise<ReadonlySet<number>> {
  const entries = snapshots.reduce((sum, { l1Entries }) => sum + l1Entries, 0)
  if (entries > MOST_SNAPSHOT_ENTRIES)
    throw new Fault('INVALID', 'the tables of the snapshots are absurdly large')
  const tables = new Set<number>()
  for (const { l1At, l1Entries } of snapshots) {
    const l1 = Buffer.alloc(l1Entries * 8)
    await file.read(l1, l1At)
    for (let index = 0; index < l1Entries; index += 1) {
      const at = l1Offset(l1, index)
      if (at === 0 || at % layout.clusterSize !== 0 || at >= file.size) continue
      tables.add(at)
      if (tables.size > MOST_PLACES)
        throw new Fault('INVALID', 'the tables of the snapshots are absurdly large')
    }
  }
  return tables
}

async function addBitmaps(
  file: HostFile,
  header: Qcow2Header,
  add: (at: number, bytes: number) => void,
): Promise<void> {
  const extension = header.extensions.find(({ type }) => type === EXTENSION.bitmaps)
  if (extension === undefined || (header.autoclear & BITMAPS) === 0n) return
  const { at, count, length } = parseBitmapsExtension(extension.data, header.layout, file.size)
  const directory = Buffer.alloc(length)
  await file.read(directory, at)
  add(at, length)
  for (const bitmap of parseBitmapDirectory(directory, count, header.layout, file.size))
    add(bitmap.tableAt, bitmap.tableEntries * 8)
}
