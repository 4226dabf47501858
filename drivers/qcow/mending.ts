/**
 * Mends the refcounts of a QCOW2 image, from what a survey counted.
 *
 * Invariants:
 *  - Counts rise before flags change, and both are on stable storage before counts fall: a power failure in between
 *    leaves an image that is as bad as before, or better.
 *  - New refcount blocks go behind everything that is used, and are whole before the header names them.
 */

import { CORRUPT, DIRTY, type Qcow2Header } from '../../formats/qcow/header.ts'
import { roundDown, roundUp, type Layout } from '../../formats/qcow/layout.ts'
import { mostRefcount, readRefcount, writeRefcount } from '../../formats/qcow/refcounts.ts'
import { HeaderSector } from './header-sector.ts'
import type { HostFile } from './host-file.ts'
import type { Survey, SurveyedTables, WrongFlag } from './survey.ts'

/** @returns what was done, in words */
export async function mend(
  file: HostFile,
  header: Qcow2Header,
  start: Buffer,
  tables: SurveyedTables,
  found: Survey,
  repair: 'leaks' | 'all',
): Promise<string[]> {
  const done: string[] = []
  const sector = new HeaderSector(file, start)
  if (file.grows) await file.ensure(roundUp(file.size, header.layout.clusterSize))
  if (repair === 'all' && found.wrong.count > 0) {
    if (found.blocksMissing) {
      await rebuild(file, header, sector, tables, found.counts)
      await writeFlags(file, header.layout, found.flags)
    } else await raise(file, header, tables, found)
    done.push(`${found.wrong.count} refcounts and flags that were wrong`)
  }
  const rebuilt = repair === 'all' && found.wrong.count > 0 && found.blocksMissing
  if (found.leaks.count > 0 && !rebuilt) {
    await writeCounts(file, header.layout, tables, found.counts, 'fall')
    await file.flush()
    done.push(`${found.leaks.count} clusters that were counted and not used`)
  }
  const marks = header.incompatible & (DIRTY | CORRUPT)
  const sound = repair === 'all' && found.damage.count === 0
  const clean = sound || (found.wrong.count === 0 && found.damage.count === 0)
  if (marks !== 0n && clean) {
    await sector.write({ incompatible: header.incompatible & ~(DIRTY | CORRUPT) })
    done.push('the mark that the image is out of order')
  }
  await file.fit()
  await file.flush()
  return done
}

/** Counts and flags as a survey found them needed, but nothing is counted less than before. */
export async function raise(
  file: HostFile,
  { layout }: Qcow2Header,
  tables: SurveyedTables,
  found: Survey,
): Promise<void> {
  await writeCounts(file, layout, tables, found.counts, 'rise')
  await writeFlags(file, layout, found.flags)
}

/** Sets or clears bit 63 of entries, table by table. What was written before is on stable storage before the first one changes. */
async function writeFlags(
  file: HostFile,
  { clusterSize }: Layout,
  flags: readonly WrongFlag[],
): Promise<void> {
  await file.flush()
  const tables = new Map<number, WrongFlag[]>()
  for (const flag of flags) {
    const tableAt = roundDown(flag.at, clusterSize)
    const there = tables.get(tableAt)
    if (there === undefined) tables.set(tableAt, [flag])
    else there.push(flag)
  }
  for (const [tableAt, wrong] of tables) {
    const bytes = Buffer.alloc(Math.min(clusterSize, file.size - tableAt))
    await file.read(bytes, tableAt)
    for (const { at, copied } of wrong) {
      const byte = bytes.readUInt8(at - tableAt)
      bytes.writeUInt8(copied ? byte | 0x80 : byte & 0x7f, at - tableAt)
    }
    await file.write(bytes, tableAt)
  }
  await file.flush()
}

/** Writes counts where they are recorded too low, or too high. Every block that is needed is there. */
async function writeCounts(
  file: HostFile,
  { clusterSize, refcountBits, refcountsPerBlock }: Layout,
  { refcountTable }: SurveyedTables,
  counts: Uint32Array,
  which: 'rise' | 'fall',
): Promise<void> {
  const block = Buffer.alloc(clusterSize)
  for (const [index, at] of refcountTable.entries()) {
    if (at === 0) continue
    await file.read(block, at)
    let changed = false
    for (let within = 0; within < refcountsPerBlock; within += 1) {
      const recorded = readRefcount(block, refcountBits, within)
      const counted = counts[index * refcountsPerBlock + within] ?? 0
      if (which === 'rise' ? counted <= recorded : counted >= recorded) continue
      writeRefcount(block, refcountBits, within, Math.min(counted, mostRefcount(refcountBits)))
      changed = true
    }
    if (changed) await file.write(Buffer.from(block), at)
  }
}

/** A refcount table and blocks of their own behind everything; the old ones become free. */
async function rebuild(
  file: HostFile,
  header: Qcow2Header,
  sector: HeaderSector,
  { refcountTable }: SurveyedTables,
  found: Uint32Array,
): Promise<void> {
  const { clusterSize, refcountBits, refcountsPerBlock } = header.layout
  const counted = found.slice()
  const leave = (at: number): void => {
    const cluster = at / clusterSize
    counted[cluster] = Math.max(0, (counted[cluster] ?? 0) - 1)
  }
  for (let each = 0; each < header.refcountTableClusters; each += 1)
    leave(header.refcountTableAt + each * clusterSize)
  for (const at of refcountTable) if (at !== 0) leave(at)
  const first = Math.max(counted.length, Math.ceil(file.size / clusterSize))
  let blocks = 1
  let tableClusters = 1
  for (;;) {
    tableClusters = Math.ceil((blocks * 8) / clusterSize)
    if (first + blocks + tableClusters <= blocks * refcountsPerBlock) break
    blocks += 1
  }
  const tableAt = (first + blocks) * clusterSize
  await file.ensure(tableAt + tableClusters * clusterSize)
  const table = Buffer.alloc(tableClusters * clusterSize)
  for (let index = 0; index < blocks; index += 1) {
    const block = Buffer.alloc(clusterSize)
    for (let within = 0; within < refcountsPerBlock; within += 1) {
      const cluster = index * refcountsPerBlock + within
      const own = cluster >= first && cluster < first + blocks + tableClusters
      const count = own ? 1 : (counted[cluster] ?? 0)
      writeRefcount(block, refcountBits, within, Math.min(count, mostRefcount(refcountBits)))
    }
    await file.write(block, (first + index) * clusterSize)
    table.writeBigUInt64BE(BigInt((first + index) * clusterSize), index * 8)
  }
  await file.write(table, tableAt)
  await sector.write({ refcountTable: { at: tableAt, clusters: tableClusters } })
}
