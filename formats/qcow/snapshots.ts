/** The snapshot table (qcow2.rst, "Snapshots"). Entries that are not understood in full are kept byte for byte. */

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
  /** The entry as it is stored, padded to a multiple of 8. */
  readonly bytes: Buffer
}

/** A snapshot of the disk alone, to be entered into the table. */
export interface NewSnapshot {
  readonly id: string
  readonly name: string
  readonly l1At: number
  readonly l1Entries: number
  readonly timeMs: number
  readonly diskSize: number
}

/** VM state size and disk size: what version 3 demands of the extra data, and QEMU writes in version 2 as well. */
const EXTRA_BYTES = 16

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
    const end = nameAt + nameLength
    const bytes = Buffer.alloc(roundUp(end - at, 8))
    table.copy(bytes, 0, at, end)
    snapshots.push({
      bytes,
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

/** The entry of a new snapshot, padded to a multiple of 8. */
export function snapshotBytes(snapshot: NewSnapshot): Buffer {
  const { diskSize, id, l1At, l1Entries, name, timeMs } = snapshot
  const idAt = ENTRY.size + EXTRA_BYTES
  const idLength = Buffer.byteLength(id)
  const nameLength = Buffer.byteLength(name)
  const bytes = Buffer.alloc(roundUp(idAt + idLength + nameLength, 8))
  const seconds = Math.floor(timeMs / 1000)
  ENTRY.write(bytes, 0, {
    ...{ l1TableOffset: l1At, l1Size: l1Entries, idLength, nameLength },
    ...{ seconds, nanoseconds: (timeMs - seconds * 1000) * 1_000_000 },
    ...{ guestNanoseconds: 0n, vmStateSize: 0, extraLength: EXTRA_BYTES },
  })
  u64.write(bytes, ENTRY.size, 0)
  u64.write(bytes, ENTRY.size + 8, diskSize)
  bytes.write(id + name, idAt)
  return bytes
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
