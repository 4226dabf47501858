/** How long a checkpoint holds a paused VM, and how long a guest's write takes while the secondary writes the epoch to its image. */

import { open } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { ProgramScope, tempDirectory, type Scope } from '../test/support/scope.ts'
import type { Effort } from './effort.ts'
import { runFio } from './fio.ts'
import type { Pair } from './pair.ts'
import {
  DIRTY_ALL,
  durabilityNote,
  MIB,
  QEMU,
  subjects,
  withSubject,
  WORKING_SET,
  write,
} from './replicas.ts'
import { atMost, COLOTAP, RowBuilder, type Section } from './table.ts'

/** Checkpoints of each size that a round makes: the worst of them stands for the 99th percentile. */
const CHECKPOINTS = 10
/** Four thousand writes, most of which come while an epoch is flushed. */
const GUEST = write('guest', 4, 1, { bytes: 16 * MIB })

/** What a guest does while its VM is checkpointed again and again, for so many seconds and so many milliseconds apart. */
const STEADY_IOPS = 2000
const STEADY = write('steady', 4, 4, { iops: STEADY_IOPS })
const STEADY_SECONDS = 12
const APART_MS = 50

/** The pause of a checkpoint for several amounts of dirty data, and the guest's latency after it. */
export async function checkpointSection(effort: Effort): Promise<Section> {
  const { pairs, durable } = await subjects(effort)
  const amounts = [0, 64, 256, 768].map((dirtyMiB) => ({
    ...{ dirtyMiB, middle: new RowBuilder(), worst: new RowBuilder() },
  }))
  const steady = { p50: new RowBuilder(), p99: new RowBuilder() }
  const guest = { p50: new RowBuilder(), p99: new RowBuilder() }
  const sync = new RowBuilder()
  for (let round = 1; round <= effort.rounds; round++) {
    for (const subject of pairs) {
      const { name } = subject
      await withSubject(effort, subject, async (scope, pair) => {
        // Nobody's first epoch counts: code and memory are cold then.
        await pausesOf(scope, pair, WORKING_SET, 1)
        if (name !== QEMU) {
          const pauses = await steadyPauses(scope, pair)
          steady.p50.add(name, quantile(pauses, 0.5))
          steady.p99.add(name, quantile(pauses, 0.99))
          effort.progress(
            `  round ${round}: steady pause: ${name} ${steady.p50.last(name)} ms, p99 ${steady.p99.last(name)} ms of ${pauses.length}`,
          )
        }
        for (const { dirtyMiB, middle, worst } of amounts) {
          const pauses = await pausesOf(scope, pair, dirtyMiB * MIB, CHECKPOINTS)
          middle.add(name, quantile(pauses, 0.5))
          worst.add(name, quantile(pauses, 1))
          effort.progress(
            `  round ${round}: pause, ${dirtyMiB} MiB: ${name} ${middle.last(name)} ms, worst ${worst.last(name)} ms`,
          )
        }
        await pausesOf(scope, pair, WORKING_SET, 1)
        const { p50LatencyUs, p99LatencyUs } = await runFio(scope, pair.uri, GUEST, 0)
        guest.p50.add(name, p50LatencyUs)
        guest.p99.add(name, p99LatencyUs)
        effort.progress(
          `  round ${round}: guest during a flush: ${name} ${guest.p50.last(name)} µs, p99 ${guest.p99.last(name)} µs`,
        )
      })
      sync.add(COLOTAP, await syncTime(effort.directory))
    }
  }
  const oneSync = sync.median(COLOTAP)
  const often = `every ${APART_MS} ms while the guest writes 4 KiB, ${STEADY_IOPS} times a second`
  const during = `4 KiB write of the guest, qd 1, while ${WORKING_SET / MIB} MiB are flushed`
  return {
    title: 'Pause of a checkpoint',
    about: `From the command to its answer: what a VM that is paused for it waits, of ${CHECKPOINTS} checkpoints in each round, one after the other: the epoch before may still be on its way into the secondary's image. ${durabilityNote(durable)} One fdatasync of 4 KiB took ${oneSync.toFixed(2)} ms here. QEMU is not in the rows with a guest that writes meanwhile: its VM has to be paused, and without that its pair of this version crashed after some fifty checkpoints. The last rows are what a guest's write takes right after a checkpoint: colotap's secondary writes the epoch to its image meanwhile; QEMU's has it there, and its primary copies on write.`,
    rows: [
      ...amounts.flatMap(({ dirtyMiB, middle, worst }) => [
        middle.build(`${dirtyMiB} MiB dirty, median`, 'ms'),
        worst.build(
          `${dirtyMiB} MiB dirty, worst`,
          'ms',
          atMost(worst, 1 + oneSync, '1 ms + one fdatasync'),
        ),
      ]),
      steady.p50.build(`${often}, median`, 'ms'),
      steady.p99.build(
        `${often}, p99`,
        'ms',
        atMost(steady.p99, 1 + oneSync, '1 ms + one fdatasync'),
      ),
      guest.p50.build(`${during}, median`, 'µs'),
      guest.p99.build(`${during}, p99`, 'µs'),
    ],
  }
}

/** Milliseconds of some checkpoints, each after `bytes` were written, in ascending order. */
async function pausesOf(
  scope: Scope,
  pair: Pair,
  bytes: number,
  checkpoints: number,
): Promise<number[]> {
  const pauses: number[] = []
  while (pauses.length < checkpoints) {
    if (bytes > 0) await runFio(scope, pair.uri, { ...DIRTY_ALL, size: bytes, bytes }, 0)
    pauses.push((await pair.checkpoint()).milliseconds)
  }
  return pauses.sort((a, b) => a - b)
}

/** Milliseconds of checkpoints that are made one after the other while the guest writes, in ascending order. */
async function steadyPauses(scope: Scope, pair: Pair): Promise<number[]> {
  const pauses: number[] = []
  let over = false
  const writing = runFio(scope, pair.uri, STEADY, STEADY_SECONDS).finally(() => (over = true))
  const isOver = (): boolean => over
  while (!isOver()) {
    pauses.push((await pair.checkpoint()).milliseconds)
    await delay(APART_MS)
  }
  await writing
  return pauses.sort((a, b) => a - b)
}

/** @param ascending not empty */
function quantile(ascending: readonly number[], share: number): number {
  return (
    ascending[Math.min(ascending.length - 1, Math.floor(ascending.length * share))] ?? Number.NaN
  )
}

/** Milliseconds of appending 4 KiB to a file and making it durable: the median of several. */
async function syncTime(directory: string): Promise<number> {
  const scope = new ProgramScope()
  const file = await open(path.join(await tempDirectory(scope, directory), 'sync'), 'w')
  const row = new RowBuilder()
  for (let i = 0; i < 20; i++) {
    const started = performance.now()
    await file.write(Buffer.alloc(4096, i))
    await file.datasync()
    row.add('sync', performance.now() - started)
  }
  await file.close()
  await scope.end()
  return row.median('sync')
}
