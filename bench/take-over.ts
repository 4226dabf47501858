/** How fast a secondary takes over, and what a pair costs while its guest does nothing. */

import { readdir, readFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { ProgramScope, tempDirectory } from '../test/support/scope.ts'
import { startColotapPair, type ColotapPair } from './colotap-pair.ts'
import type { Effort } from './effort.ts'
import { runFio } from './fio.ts'
import { NbdProbe } from './nbd-probe.ts'
import { DIRTY_ALL, images, MIB, WORKING_SET } from './replicas.ts'
import { atMost, COLOTAP, RowBuilder, type Section } from './table.ts'

/** So long an idle pair is watched at least: what it does comes now and then. */
const LEAST_IDLE_SECONDS = 10

export async function takeOverSection(effort: Effort): Promise<Section> {
  const promotions = [0, WORKING_SET].map((dirty) => ({ dirty, row: new RowBuilder() }))
  const idle = new RowBuilder()
  for (let round = 1; round <= effort.rounds; round++) {
    for (const { dirty, row } of promotions) {
      const scope = new ProgramScope()
      try {
        const directory = await tempDirectory(scope, effort.directory)
        const pair = await startColotapPair(scope, ...(await images(scope, directory)))
        if (dirty === 0) idle.add(COLOTAP, await idleCpu(pair, effort.seconds))
        row.add(COLOTAP, await takeOver(scope, pair, dirty))
        effort.progress(
          `  round ${round}: promote over ${dirty / MIB} MiB: ${row.last(COLOTAP)} ms; idle: ${idle.last(COLOTAP)} % of a core`,
        )
      } finally {
        await scope.end()
      }
    }
  }
  return {
    title: 'Taking over, and doing nothing',
    about:
      'The primary is killed; the time runs from the promote command until a client that was connected to the secondary has read a block. The processor time is that of both processes together.',
    rows: [
      ...promotions.map(({ dirty, row }) =>
        row.build(
          `promote to first served request, ${dirty / MIB} MiB committed just before`,
          'ms',
          atMost(row, 10, '10 ms'),
        ),
      ),
      idle.build('processor time of an idle pair', '% of a core', atMost(idle, 1, '1 %')),
    ],
  }
}

/** Milliseconds from the command to the first read, with `dirty` bytes on their way into the image. */
async function takeOver(scope: ProgramScope, pair: ColotapPair, dirty: number): Promise<number> {
  const probe = await NbdProbe.connect(scope, pair.secondary.socket, 'disk')
  await probe.read()
  if (dirty > 0) {
    await runFio(scope, pair.uri, { ...DIRTY_ALL, bytes: dirty }, 0)
    await pair.checkpoint()
  }
  await pair.primary.child.kill()
  const started = performance.now()
  await pair.secondaryQmp.execute('replication-promote', { force: true })
  await probe.read()
  return performance.now() - started
}

/** Percent of a core that both sides used over some seconds. */
async function idleCpu(pair: ColotapPair, effort: number): Promise<number> {
  const seconds = Math.max(effort, LEAST_IDLE_SECONDS)
  const used = async (): Promise<number> =>
    (await cpuSeconds(pair.primary.child.pid)) + (await cpuSeconds(pair.secondary.child.pid))
  const before = await used()
  await delay(seconds * 1000)
  return ((await used()) - before) * (100 / seconds)
}

/** Processor time of all threads of a process so far, to the nanosecond (sched-stats.rst of Linux, /proc/PID/task/TID/schedstat). */
async function cpuSeconds(pid: number): Promise<number> {
  const threads = await readdir(`/proc/${pid}/task`)
  const used = threads.map(async (thread) => {
    const [running] = (await readFile(`/proc/${pid}/task/${thread}/schedstat`, 'utf8')).split(' ')
    return Number(running)
  })
  return (await Promise.all(used)).reduce((sum, each) => sum + each, 0) / 1e9
}
