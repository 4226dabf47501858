/** What a soak says: a line for each round, and the report at its end. */

import { formatSize } from '../../core/units.ts'
import { columns } from '../command-line.ts'
import { formatTime } from '../status-text.ts'
import type { Histogram } from './histogram.ts'
import type { Tally } from './tally.ts'

export interface Outcome {
  readonly seed: number
  readonly tally: Tally
  readonly elapsedMs: number
  /** Whether it came to its end by itself. */
  readonly finished: boolean
}

/** One line after a round. */
export function roundText(kind: string, tally: Tally): string {
  const { writes, reads } = tally.guests
  return `round ${tally.finishedRounds} (${kind}): ${writes} writes, ${reads} reads and ${tally.pause.count} checkpoints so far, no violation`
}

export function reportText({ seed, tally, elapsedMs, finished }: Outcome): string {
  const { writes, bytesWritten, reads } = tally.guests
  const found = tally.violations.length
  const verdict = found === 0 ? 'no violation' : found === 1 ? '1 VIOLATION' : `${found} VIOLATIONS`
  const kinds = [...tally.rounds].map(([kind, count]) => `${count} ${kind}`).join(', ')
  const rows: [string, string][] = [
    ['rounds', `${tally.finishedRounds}${kinds === '' ? '' : `: ${kinds}`}`],
    ['guest', `${writes} writes (${formatSize(bytesWritten)}), ${reads} reads checked`],
    ['compared', `${formatSize(tally.compared)} of disks and images with the model`],
    ['checkpoints', `${tally.pause.count} committed, ${tally.unconfirmed} not confirmed`],
    ['pause', spread(tally.pause)],
    ['commit', spread(tally.commit)],
    ...(tally.healing.count === 0
      ? []
      : [['protected again', `after ${spread(tally.healing)}`] as [string, string]]),
    ...healingRows(tally),
    ...(tally.takeover.count === 0
      ? []
      : [['took over', `within ${spread(tally.takeover)}`] as [string, string]]),
    ['violations', String(found)],
    ...tally.violations.map((violation): [string, string] => ['', violation]),
    ['seed', String(seed)],
  ]
  const end = finished ? '' : ', not to its end'
  return `soak of ${(elapsedMs / 1000).toFixed(1)} s${end}: ${verdict}\n${columns(rows)}`
}

/** The same for programs: times in microseconds, null where there are none. */
export function reportJson({ seed, tally, elapsedMs, finished }: Outcome): string {
  const times = (histogram: Histogram): Record<string, number | null> => ({
    p50: histogram.percentile(0.5) ?? null,
    p99: histogram.percentile(0.99) ?? null,
    most: histogram.count === 0 ? null : Math.round(histogram.most),
  })
  return JSON.stringify({
    seed,
    finished,
    seconds: Math.round(elapsedMs) / 1000,
    rounds: Object.fromEntries(tally.rounds),
    ...tally.guests,
    bytesCompared: tally.compared,
    checkpoints: tally.pause.count,
    unconfirmed: tally.unconfirmed,
    pauseUs: times(tally.pause),
    commitUs: times(tally.commit),
    protectedAgainUs: times(tally.healing),
    protectedAgainBySize: classes(tally).map(([mostBytes, histogram]) => ({
      ...{ mostBytes, count: histogram.count, ...times(histogram) },
    })),
    resentBytes: tally.resentBytes,
    tookOverUs: times(tally.takeover),
    violations: tally.violations,
  })
}

/** Protection comes back the sooner, the less has to be sent for it. */
function healingRows(tally: Tally): [string, string][] {
  const rows = classes(tally).map(([most, times]): [string, string] => [
    '',
    `${times.count} times with up to ${formatSize(most)} to send: ${spread(times)}`,
  ])
  const resent: [string, string] = ['', `${formatSize(tally.resentBytes)} of data sent again`]
  return rows.length === 0 ? [] : [...rows, resent]
}

function classes({ healingBySize }: Tally): [number, Histogram][] {
  return [...healingBySize].sort(([a], [b]) => a - b)
}

function spread(times: Histogram): string {
  const [median, tail] = [times.percentile(0.5), times.percentile(0.99)]
  if (median === undefined || tail === undefined) return 'none'
  return `p50 ${formatTime(median)}, p99 ${formatTime(tail)}`
}
