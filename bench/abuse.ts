/**
 * What a well-behaved client notices of bad ones: its latency alone and beside each crowd, and the most memory that the
 * server has used. A server that cannot take a crowd has no figure there.
 */

import { readFile, rm } from 'node:fs/promises'
import path from 'node:path'

import { ProgramScope } from '../test/support/scope.ts'
import { HALF_OPEN, LARGEST_REQUESTS, SLOW_CLIENTS, type Crowd } from './bad-clients.ts'
import { colotapOn, nbdkitFile, qemuNbd, type Contender } from './contenders.ts'
import type { Effort } from './effort.ts'
import { runFio, type Workload } from './fio.ts'
import { DISK_SIZE, writeRawImage } from './single-server.ts'
import { RowBuilder, type Section, type Unit } from './table.ts'

const CROWDS: readonly (Crowd | undefined)[] = [
  undefined,
  SLOW_CLIENTS,
  LARGEST_REQUESTS,
  HALF_OPEN,
]
/** All of a crowd, fio, and some that are dropped and not yet gone. */
const ADMITTED = 4000

const WORK: Workload = {
  ...{ name: '4 KiB random read, qd 1', rw: 'randread', blockKiB: 4, depth: 1, unit: 'kIOPS' },
  size: DISK_SIZE,
}

const MEASURES: readonly { name: keyof Measured; title: string; unit: Unit }[] = [
  { name: 'p50', title: 'median latency', unit: 'µs' },
  { name: 'p99', title: '99th percentile of latency', unit: 'µs' },
  { name: 'memory', title: 'most memory of the server', unit: 'MiB' },
]

interface Measured {
  readonly p50: number
  readonly p99: number
  readonly memory: number
}

export async function abuseSection(effort: Effort): Promise<Section> {
  const contenders = [
    qemuNbd('raw', 'threads', ADMITTED),
    nbdkitFile,
    colotapOn((image) => `aio:${image}`, ['--max-connections', String(ADMITTED)]),
  ]
  const image = path.join(effort.directory, 'disk.img')
  const situations = CROWDS.map((crowd) => ({
    crowd,
    name: crowd === undefined ? 'alone' : `beside ${crowd.name}`,
    rows: MEASURES.map((measure) => ({ measure, row: new RowBuilder() })),
  }))
  const scope = new ProgramScope()
  try {
    await writeRawImage(scope, image)
    for (let round = 1; round <= effort.rounds; round++) {
      for (const { crowd, name, rows } of situations) {
        for (const contender of contenders) {
          const measured = await sample(effort, contender, image, crowd)
          for (const { measure, row } of rows)
            if (typeof measured !== 'string') row.add(contender.name, measured[measure.name])
          const story =
            typeof measured === 'string'
              ? measured
              : `${measured.p50.toFixed(0)} µs, p99 ${measured.p99.toFixed(0)} µs, ${measured.memory.toFixed(0)} MiB`
          effort.progress(`  round ${round}: ${name}: ${contender.name} ${story}`)
        }
      }
    }
  } finally {
    await scope.end()
    await rm(image, { force: true })
  }
  return {
    title: 'Beside clients that mean no good',
    about: `One client with ${WORK.name} on a raw image. The slow clients send a byte a second each, half of them in the handshake; of those with the largest requests, which have 16 outstanding each, half take no answers; the half-open ones have asked for 512 KiB each and closed their half. The client, the crowd and the server share the machine's cores. A server without a figure failed the client.`,
    rows: situations.flatMap(({ name, rows }) =>
      rows.map(({ measure, row }) => row.build(`${measure.title}, ${name}`, measure.unit)),
    ),
  }
}

/** @returns why the client was not served, where it was not */
async function sample(
  effort: Effort,
  contender: Contender,
  image: string,
  crowd: Crowd | undefined,
): Promise<Measured | string> {
  const scope = new ProgramScope()
  try {
    const { uri, socket, process } = await contender.start(scope, image)
    await crowd?.gather(scope, socket)
    const { p50LatencyUs, p99LatencyUs } = await runFio(scope, uri, WORK, effort.seconds)
    return { p50: p50LatencyUs, p99: p99LatencyUs, memory: await peakMemory(process.pid) }
  } catch (error) {
    return `failed: ${error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error)}`
  } finally {
    await scope.end()
  }
}

/** The most memory that a process has had resident, in MiB: VmHWM of proc(5), /proc/pid/status. */
async function peakMemory(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8')
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? Number.NaN) / 1024
}
