/** The snapshot table (qcow2.rst, "Snapshots"): read only; snapshots are preserved, not made, by colotap. */

import { Fault } from '../../core/fault.ts'
import { structure, u16, u32, u64, word64 } from '../structure.ts'
import { MOST_L1_BYTES, roundUp, type Layout } from './layout.ts'

const ENTRY = structure('snapshot table entry', 40, {
  l1TableOffset: [0, u64],
  l1Size: [8, u32],
  idLength: [12, u16],
  nameLength: [14, u16],
  seconds: [16, u32],
  nanoseconds: [20, u32],
  guestNanoseconds: [24, word64],
  vmStateSize: [32, u32],
  extraLength: [36, u32],
})

export interface Snapshot {
  readonly id: string
  readonly name: string
  readonly l1At: number
  readonly l1Entries: number
  /** Since the Epoch. */
  readonly seconds: number
  /** Bytes of the disk when it was taken; undefined where version 2 did not note it. */
  readonly diskSize: number | undefined
  readonly vmStateBytes: number
}

/** The most that one entry may take: fields, extra data, two names. */
const MOST_SNAPSHOT_EXTRA = 1024
/** The most that the whole table may take; more is no table that anybody made. */
export const MOST_SNAPSHOT_TABLE = 16 * 1024 * 1024

/**
 * @param table bytes from the start of the table on; more than it needs does no harm
 * @returns the snapshots, and the bytes that their table takes
 * @throws Fault INVALID when the table does not end within `table`, or names an L1 table that cannot be
 */
export function parseSnapshots(
  table: Buffer,
  count: number,
  layout: Layout,
  fileSize: number,
): { readonly snapshots: readonly Snapshot[]; readonly length: number } {
  const snapshots: Snapshot[] = []
  let at = 0
  for (let index = 0; index < count; index += 1) {
    if (at + ENTRY.size > table.length) throw beyond(index)
    const entry = ENTRY.read(table, at)
    const { extraLength, idLength, nameLength } = entry
    if (extraLength > MOST_SNAPSHOT_EXTRA)
      throw new Fault('INVALID', `snapshot ${index} has ${extraLength} bytes of extra data`)
    const idAt = at + ENTRY.size + extraLength
    const nameAt = idAt + idLength
    if (nameAt + nameLength > table.length) throw beyond(index)
    const reason = l1Objection(entry.l1TableOffset, entry.l1Size, layout, fileSize)
    if (reason !== undefined) throw new Fault('INVALID', `snapshot ${index}: ${reason}`)
    const extra = table.subarray(at + ENTRY.size, idAt)
    snapshots.push({
      id: table.toString('utf8', idAt, nameAt),
      name: table.toString('utf8', nameAt, nameAt + nameLength),
      l1At: entry.l1TableOffset,
      l1Entries: entry.l1Size,
      seconds: entry.seconds,
      vmStateBytes: extra.length >= 8 ? u64.read(extra, 0) : entry.vmStateSize,
      diskSize: extra.length >= 16 ? u64.read(extra, 8) : undefined,
    })
    at = roundUp(nameAt + nameLength, 8)
  }
  return { snapshots, length: at }
}

function l1Objection(
  at: number,
  entries: number,
  { clusterSize }: Layout,
  fileSize: number,
): string | undefined {
  if (entries * 8 > MOST_L1_BYTES) return `an L1 table of ${entries} entries is too large`
  if (at % clusterSize !== 0) return 'its L1 table begins at no cluster boundary'
  if (entries > 0 && at === 0) return 'its L1 table overlaps the header'
  if (at + entries * 8 > roundUp(fileSize, clusterSize))
    return 'its L1 table is beyond the end of the file'
  return undefined
}

function beyond(index: number): Fault {
  return new Fault('INVALID', `snapshot ${index} is beyond the end of the file or of a sane table`)
}
