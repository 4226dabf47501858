/**
 * Checks QCOW images, and repairs the refcounts of QCOW2 ones.
 *
 * Invariant: an image is repaired only when no other program has it open, as for every writer; without a repair it is
 * opened for reading and nothing is written.
 */

import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { CORRUPT, DIRTY } from '../../formats/qcow/header.ts'
import { NOWHERE } from '../../formats/qcow/entry-format.ts'
import { Qcow1Format } from '../../formats/qcow/qcow1-format.ts'
import { openImageFile } from '../aio/aio.ts'
import type { CheckReport, Progress, Repair } from '../image-format.ts'
import { HostFile } from './host-file.ts'
import { mend } from './mending.ts'
import { readQcow1Header, readQcow1Table } from './open-qcow1.ts'
import { readHeader } from './open-qcow2.ts'
import { readSurveyed } from './open-tables.ts'
import { survey, type Survey } from './survey.ts'
import { versionOf } from './version.ts'

export async function checkQcow(
  path: string,
  repair: Repair,
  progress: Progress,
): Promise<CheckReport> {
  const use = { readOnly: repair === 'none', logger: SILENT, threads: 1 }
  const file = await openImageFile(path, use)
  try {
    return (await versionOf(file)) === 1
      ? await checkQcow1(file, path, progress)
      : await checkQcow2(file, path, repair, progress)
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'INVALID') throw error
    return { errors: [error.what], leaks: [], repaired: [] }
  } finally {
    await file.close()
  }
}

/** Does for an image that was not closed in order what has to be done before it is written to. */
export async function repairUnclosed(file: BlockDevice, path: string): Promise<void> {
  const { errors } = await checkQcow2(file, path, 'all', () => undefined)
  const [first] = errors
  if (first === undefined) return
  throw new Fault('NOT_PERMITTED', `the image was not closed in order, and is damaged: ${first}`, {
    where: path,
    remedy: 'restore it from a copy, or open it read-only',
  })
}

async function checkQcow2(
  file: BlockDevice,
  path: string,
  repair: Repair,
  progress: Progress,
): Promise<CheckReport> {
  const { header, start } = await readHeader(file, path)
  const host = new HostFile(file, path)
  const tables = await readSurveyed(host, header)
  const found = await survey(host, header, tables, progress)
  const before = reportOf(found, header.incompatible)
  if (repair === 'none' || before.errors.length + before.leaks.length === 0) return before
  const repaired = await mend(host, header, start, tables, found, repair)
  if (repaired.length === 0) return before
  return { ...(await checkQcow2(file, path, 'none', progress)), repaired }
}

function reportOf(found: Survey, incompatible: bigint): CheckReport {
  const marks: string[] = []
  if ((incompatible & CORRUPT) !== 0n) marks.push('the image is marked as corrupt')
  if ((incompatible & DIRTY) !== 0n) marks.push('the image was not closed in order')
  return {
    errors: [...marks, ...found.damage.list(), ...found.wrong.list()],
    leaks: found.leaks.list(),
    repaired: [],
  }
}

async function checkQcow1(
  file: BlockDevice,
  path: string,
  progress: Progress,
): Promise<CheckReport> {
  const header = await readQcow1Header(file, path)
  const format = new Qcow1Format(header)
  const host = new HostFile(file, path)
  const l1 = await readQcow1Table(host, header, format)
  const { clusterSize, l2Bytes, l2Entries, l2Span } = format.layout
  const errors: string[] = []
  const users = new Set<number>()
  const table = Buffer.alloc(l2Bytes)
  for (let index = 0; index < header.l1Entries; index += 1) {
    progress(index, header.l1Entries)
    const at = format.tableAt(l1, index)
    if (at === 0) continue
    await host.read(table, at)
    for (let entry = 0; entry < l2Entries; entry += 1) {
      const reason = format.objection(table, entry, host.size)
      const guestAt = index * l2Span + entry * clusterSize
      const twice = reason === undefined && format.host !== NOWHERE && users.has(format.host)
      if (format.host !== NOWHERE) users.add(format.host)
      const problem = twice ? `the cluster at ${format.host} is used twice` : reason
      if (problem !== undefined && errors.length < 100) errors.push(`byte ${guestAt}: ${problem}`)
    }
  }
  return { errors, leaks: [], repaired: [] }
}
