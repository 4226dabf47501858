/** How long a checkpoint holds a paused VM. */

import { open } from 'node:fs/promises'
import path from 'node:path'
import { ProgramScope, tempDirectory } from '../test/support/scope.ts'
import type { Effort } from './effort.ts'
import { runFio } from './fio.ts'
import { DIRTY_ALL, durabilityNote, MIB, subjects, withSubject } from './replicas.ts'
import { atMost, COLOTAP, RowBuilder, type Section } from './table.ts'

/** The pause of a checkpoint for several amounts of dirty data. */
export async function checkpointSection(effort: Effort): Promise<Section> {
  const { pairs, durable } = await subjects(effort)
  const amounts = [0, 64, 256, 768].map((dirtyMiB) => ({ dirtyMiB, row: new RowBuilder() }))
  const sync = new RowBuilder()
  for (let round = 1; round <= effort.rounds; round++) {
    for (const subject of pairs) {
      await withSubject(effort, subject, async (scope, pair) => {
        await pair.checkpoint()
        for (const { dirtyMiB, row } of amounts) {
          const bytes = dirtyMiB * MIB
          const fill = { ...DIRTY_ALL, size: bytes, bytes }
          if (bytes > 0) await runFio(scope, pair.uri, fill, 0)
          const { milliseconds } = await pair.checkpoint()
          row.add(subject.name, milliseconds)
          effort.progress(
            `  round ${round}: pause, ${dirtyMiB} MiB: ${subject.name} ${row.last(subject.name)} ms`,
          )
        }
      })
      sync.add(COLOTAP, await syncTime(effort.directory))
    }
  }
  const oneSync = sync.median(COLOTAP)
  return {
    title: 'Pause of a checkpoint',
    about: `From the command to its answer: what a VM that is paused for it waits. ${durabilityNote(durable)} One fdatasync of 4 KiB took ${oneSync.toFixed(2)} ms here.`,
    rows: amounts.map(({ dirtyMiB, row }) =>
      row.build(`${dirtyMiB} MiB dirty`, 'ms', atMost(row, 1 + oneSync, '1 ms + one fdatasync')),
    ),
  }
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
