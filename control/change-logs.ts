/** Commands for incremental backups: which blocks of an export were changed since the last one (drivers/log). */

import type { ChangeLog } from '../core/change-log.ts'
import { Fault } from '../core/fault.ts'
import { quote } from './arguments.ts'

export interface ExportChanges {
  readonly exportName: string
  readonly log: ChangeLog
}

interface LogReply {
  readonly export: string
  readonly path: string
  readonly block: number
  readonly changedBytes: number
  readonly backupBytes: number | null
  readonly unknown: string | null
}

/** Ranges of one reply: a line of the control protocol stays readable. */
const RANGES_AT_A_TIME = 10_000

export function logsReply(logs: readonly ExportChanges[]): LogReply[] {
  return logs.map(logReply)
}

export function beginBackup(logs: readonly ExportChanges[], name: string): LogReply {
  const found = logOf(logs, name)
  found.log.begin()
  return logReply(found)
}

/** `next` is where to go on, null at the end. */
export function changesOf(
  logs: readonly ExportChanges[],
  name: string,
  from: number,
): { ranges: { at: number; length: number }[]; next: number | null } {
  const { log } = logOf(logs, name)
  const ranges: { at: number; length: number }[] = []
  let range = log.next(from)
  while (range !== undefined && ranges.length < RANGES_AT_A_TIME) {
    ranges.push({ at: range.at, length: range.length })
    range = log.next(range.at + range.length)
  }
  return { ranges, next: range?.at ?? null }
}

export function endBackup(
  logs: readonly ExportChanges[],
  name: string,
  succeeded: boolean,
): LogReply {
  const found = logOf(logs, name)
  found.log.end(succeeded)
  return logReply(found)
}

function logOf(logs: readonly ExportChanges[], name: string): ExportChanges {
  const found = logs.find(({ exportName }) => exportName === name)
  if (found !== undefined) return found
  const known = logs.map(({ exportName }) => exportName).join(', ')
  throw new Fault('NOT_FOUND', `the changes of ${quote(name)} are not logged`, {
    remedy:
      known === ''
        ? 'put a log layer into the pipeline of an export'
        : `the exports with a log are ${known}`,
  })
}

function logReply({ exportName, log }: ExportChanges): LogReply {
  const { path, block, changedBytes, backupBytes, unknown } = log.status
  return {
    export: exportName,
    path,
    block,
    changedBytes,
    backupBytes: backupBytes ?? null,
    unknown: unknown ?? null,
  }
}
