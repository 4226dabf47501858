/** The status of replication groups and exports in words, for people. */

import type { ExportSummary } from '../control/command.ts'
import { formatSize } from '../core/units.ts'
import type { DiskStatus, GroupStatus } from '../replication/group.ts'
import { columns } from './command-line.ts'
import { adviceOn } from './status-advice.ts'

/** @param perSecond checkpoints, where that is known */
export function groupText(status: GroupStatus, perSecond?: number): string {
  const { group, mode, role, protection, reason, checkpoint, term, durable, peer } = status
  const served = role === 'active' ? 'active (serving alone)' : role
  const kept = durable ? '; survives a crash of the secondary' : '; held in memory by the secondary'
  const number = checkpoint === 0 ? 'none yet' : String(checkpoint)
  const advice = adviceOn(status)
  const rows: [string, string][] = [
    ['protection', reason === null ? protection : `${protection}: ${reason}`],
    ...(advice === undefined ? [] : [['', advice] as [string, string]]),
    ['checkpoint', `${number}, term ${term}${role === 'active' ? '' : kept}`],
    ...timesOf(status, perSecond),
    ['peer', peer ?? 'none connected'],
    ...resyncOf(status),
    ...recoveryOf(status),
    ...verifyOf(status),
    ...(status.ramdiskBytes > 0
      ? [['held', `${formatSize(status.ramdiskBytes)} of epochs in memory`] as [string, string]]
      : []),
    ...(status.spilledBytes > 0
      ? [
          ['spilled', `${formatSize(status.spilledBytes)} of epochs in the journal only`] as [
            string,
            string,
          ],
        ]
      : []),
    ...(status.journalBytes > 0
      ? [['journal', `${formatSize(status.journalBytes)} on disk`] as [string, string]]
      : []),
    ...status.disks.map((disk): [string, string] => [`disk ${disk.name}`, diskText(disk)]),
    ...(status.error === null ? [] : [['error', status.error] as [string, string]]),
    ...alarmsOf(status),
  ]
  return `group ${group} (${mode}): ${served}, ${protection}\n${columns(rows)}`
}

/** What went wrong stays in sight until somebody says that it was seen. */
function alarmsOf({ alarms, group }: GroupStatus): [string, string][] {
  if (alarms.length === 0) return []
  return [
    ...alarms.map(({ text, count, lastAgeMs }): [string, string] => [
      'alarm',
      `${text} (${count === 1 ? '' : `${count} times, last `}${formatTime(lastAgeMs * 1000)} ago)`,
    ]),
    ['', `colotap acknowledge ${group} takes them back`],
  ]
}

function timesOf({ checkpoints }: GroupStatus, perSecond?: number): [string, string][] {
  if (checkpoints === null) return []
  const { ageMs, pauseUs, commitUs } = checkpoints
  const often = perSecond === undefined ? '' : `; ${perSecond.toFixed(1)} a second`
  const pair = ({ p50, p99 }: typeof pauseUs): string => `${formatTime(p50)} / ${formatTime(p99)}`
  return [
    [
      '',
      `${formatTime(ageMs * 1000)} ago; pause ${pair(pauseUs)}, of it commit ${pair(commitUs)} (p50 / p99)${often}`,
    ],
  ]
}

function resyncOf({ resync }: GroupStatus): [string, string][] {
  if (resync === null) return []
  const { sentBytes, totalBytes, checkedBytes, movedBytes } = resync
  const compared =
    checkedBytes === 0
      ? ''
      : `; ${formatSize(checkedBytes)} compared, ${formatSize(movedBytes)} of data moved`
  return [['resync', `${shareText(sentBytes, totalBytes, resync)}${compared}`]]
}

interface Speed {
  readonly bytesPerSecond: number
  readonly secondsLeft: number | null
}

function shareText(done: number, total: number, { bytesPerSecond, secondsLeft }: Speed): string {
  const share = total === 0 ? 100 : Math.floor((100 * done) / total)
  const left = secondsLeft === null ? '' : `, about ${secondsLeft} s left`
  return `${share} %: ${formatSize(done)} of ${formatSize(total)} at ${formatSize(bytesPerSecond)}/s${left}`
}

function recoveryOf({ recovery, protection }: GroupStatus): [string, string][] {
  if (recovery === null || protection !== 'protected') return []
  const { unprotectedMs, movedBytes } = recovery
  const moved = movedBytes === null ? '' : `; ${formatSize(movedBytes)} of data moved`
  return [['', `after ${formatTime(unprotectedMs * 1000)} without protection${moved}`]]
}

function verifyOf({ verify }: GroupStatus): [string, string][] {
  if (verify === null) return []
  const { state, reason, checkedBytes, totalBytes, differentBytes } = verify
  const found = differentBytes === 0 ? 'no difference' : `${formatSize(differentBytes)} differ`
  if (state === 'running')
    return [['verify', `${shareText(checkedBytes, totalBytes, verify)}; ${found} so far`]]
  if (state === 'unfinished') return [['verify', `unfinished (${reason ?? ''}): ${found} so far`]]
  return [['verify', `${formatSize(totalBytes)} compared: ${found}`]]
}

function diskText({ size, dirtyBytes }: DiskStatus): string {
  const changed =
    dirtyBytes === 0 ? 'unchanged' : `${formatSize(dirtyBytes)} changed or possibly changed`
  return `${formatSize(size)}, ${changed} since the checkpoint`
}

export function exportsText(exports: readonly ExportSummary[]): string {
  const rows = exports.flatMap(({ name, size, readOnly, connections, ...rest }) => {
    const { state, pipeline, error } = rest
    const shown = state === 'serving' ? '' : `, ${state}${error === null ? '' : `: ${error}`}`
    const what = `${formatSize(size)}${readOnly ? ', read-only' : ''}, ${clients(connections)}${shown}`
    return [[name, what] as [string, string], ['', pipeline] as [string, string]]
  })
  return `exports\n${columns(rows)}`
}

function clients(count: number): string {
  if (count === 0) return 'no client'
  return count === 1 ? '1 client' : `${count} clients`
}

/** Microseconds as people say them. */
export function formatTime(microseconds: number): string {
  if (microseconds < 1000) return `${microseconds} µs`
  if (microseconds < 1e6) return `${(microseconds / 1000).toFixed(1)} ms`
  return `${(microseconds / 1e6).toFixed(2)} s`
}
