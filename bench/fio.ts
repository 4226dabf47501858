/** One fio run against an NBD server: the same client, size and queue depth for every subject. */

import { mustRun } from '../test/support/child.ts'
import type { Scope } from '../test/support/scope.ts'
import type { Unit } from './table.ts'

export interface Workload {
  readonly name: string
  readonly rw: 'randread' | 'randwrite' | 'read' | 'write'
  readonly blockKiB: 4 | 64 | 256
  readonly depth: number
  readonly unit: Unit
  /** Bytes of the disk that are used, from its start. */
  readonly size: number
  /** Instead of running for a time: write this much and end. */
  readonly bytes?: number
  /** Requests in a second, where it is not as many as there can be. */
  readonly iops?: number
  /** Requests start at multiples of this many KiB. */
  readonly alignKiB?: number
}

interface Direction {
  readonly iops: number
  readonly bw_bytes: number
  readonly total_ios: number
  readonly clat_ns: {
    readonly mean: number
    readonly percentile?: Readonly<Record<string, number>>
  }
}

interface Report {
  readonly jobs: [{ readonly error: number; readonly read: Direction; readonly write: Direction }]
}

/** What one run measured. */
export interface Outcome {
  /** In the workload's unit. */
  readonly value: number
  readonly meanLatencyUs: number
  readonly p50LatencyUs: number
  readonly p99LatencyUs: number
}

/** Runs the workload for `seconds` after one second of warming up. */
export async function runFio(
  scope: Scope,
  uri: string,
  work: Workload,
  seconds: number,
): Promise<Outcome> {
  const extent =
    work.bytes === undefined
      ? ['--time_based', `--runtime=${seconds}`, '--ramp_time=1', '--norandommap']
      : [`--io_size=${work.bytes}`]
  const output = await mustRun(
    scope,
    'fio',
    [
      ...['--name=bench', '--ioengine=nbd', `--uri=${uri}`, '--output-format=json'],
      ...(work.iops === undefined ? [] : [`--rate_iops=${work.iops}`]),
      ...[`--rw=${work.rw}`, `--bs=${work.blockKiB}k`, `--iodepth=${work.depth}`],
      ...(work.alignKiB === undefined ? [] : [`--blockalign=${work.alignKiB}k`]),
      ...[`--size=${work.size}`, '--randseed=1', ...extent],
    ],
    { patienceMs: (seconds + 300) * 1000 },
  )
  const [job] = (JSON.parse(output.slice(output.indexOf('{'))) as Report).jobs
  const side = work.rw.endsWith('read') ? job.read : job.write
  if (job.error !== 0 || side.total_ios === 0) throw new Error(`fio failed on ${uri}: ${output}`)
  return {
    value: inUnit(side, work.unit),
    meanLatencyUs: side.clat_ns.mean / 1000,
    p50LatencyUs: percentileUs(side, '50.000000'),
    p99LatencyUs: percentileUs(side, '99.000000'),
  }
}

function percentileUs(side: Direction, percentile: string): number {
  return (side.clat_ns.percentile?.[percentile] ?? Number.NaN) / 1000
}

function inUnit(side: Direction, unit: Unit): number {
  return unit === 'GB/s' ? side.bw_bytes / 1e9 : side.iops / 1000
}
