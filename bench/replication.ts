/** What replication costs the guest that writes. */

import type { Effort } from './effort.ts'
import { runFio, type Outcome, type Workload } from './fio.ts'
import {
  COLOTAP_ALONE,
  COLOTAP_MEMORY,
  DIRTY_ALL,
  durabilityNote,
  MIB,
  QEMU,
  QEMU_ALONE,
  subjects,
  withSubject,
  WORKING_SET,
  write,
} from './replicas.ts'
import { atLeast, atMost, COLOTAP, RowBuilder, type Section } from './table.ts'

const RANDOM = write('4 KiB random write, qd 32', 4, 32)
const SEQUENTIAL = write('256 KiB sequential write, qd 8', 256, 8)
const SINGLE = write('4 KiB random write, qd 1', 4, 1)

/** Replicated writes: over an epoch's working set that is dirty already, and right after a checkpoint. */
export async function replicationSection(effort: Effort): Promise<Section> {
  const { all, durable } = await subjects(effort)
  const kinds = [
    { work: RANDOM, fresh: false },
    { work: SEQUENTIAL, fresh: false },
    { work: { ...RANDOM, name: `${RANDOM.name}, right after a checkpoint` }, fresh: true },
  ].map((kind) => ({ ...kind, row: new RowBuilder() }))
  const latency = new RowBuilder()
  for (let round = 1; round <= effort.rounds; round++) {
    const latencies = new Map<string, Outcome>()
    for (const subject of all) {
      await withSubject(effort, subject, async (scope, pair) => {
        const run = (work: Workload): Promise<Outcome> =>
          runFio(scope, pair.uri, work, effort.seconds)
        for (const { work, fresh, row } of kinds) {
          await pair.checkpoint()
          if (!fresh) await run(DIRTY_ALL)
          row.add(subject.name, (await run(work)).value)
          effort.progress(
            `  round ${round}: ${work.name}: ${subject.name} ${row.last(subject.name)}`,
          )
        }
        await run(DIRTY_ALL)
        latencies.set(subject.name, await run(SINGLE))
      })
    }
    addDifference(latency, latencies, QEMU, QEMU_ALONE)
    addDifference(latency, latencies, COLOTAP, COLOTAP_ALONE)
    addDifference(latency, latencies, COLOTAP_MEMORY, COLOTAP_ALONE)
  }
  return {
    title: 'Replicated writes',
    about: `Over a working set of ${WORKING_SET / MIB} MiB. Except in the row that says so, all of it was written once since the last checkpoint, which favours QEMU: its copy on write is then over. ${durabilityNote(durable)}`,
    rows: [
      ...kinds.map(({ work, fresh, row }) =>
        row.build(work.name, work.unit, [
          ...atLeast(row, 4, [QEMU], QEMU),
          ...(fresh ? [] : atLeast(row, 0.6, [COLOTAP_ALONE], COLOTAP_ALONE)),
        ]),
      ),
      latency.build('added latency of replication, 4 KiB qd 1', 'µs', [
        ...atMost(latency, latency.median(QEMU) / 2, `half of ${QEMU}'s`),
      ]),
    ],
  }
}

function addDifference(
  row: RowBuilder,
  latencies: ReadonlyMap<string, Outcome>,
  subject: string,
  base: string,
): void {
  const paired = latencies.get(subject)?.meanLatencyUs
  const unpaired = latencies.get(base)?.meanLatencyUs
  if (paired !== undefined && unpaired !== undefined) row.add(subject, paired - unpaired)
}
