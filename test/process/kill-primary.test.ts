/**
 * The promise that everything else serves: kill the primary at any moment, and the secondary is exactly at its last
 * acknowledged checkpoint, or at the one that was under way, all disks of the group at the same one. Both sides have raw images, or any of any formats.
 *
 * KILL_ROUNDS and KILL_SEED choose how many moments and which ones.
 */

import t from 'tap'
import { DISKS, judge, startWorkloads, takeCheckpoints } from '../support/block-workload.ts'
import { killRounds } from '../support/kill-rounds.ts'
import { below, seededRandom } from '../../core/seeded-random.ts'
import { anyFormats } from '../support/replica-images.ts'
import { linkLost, startPair } from '../support/replica-pair.ts'
import { ProgramScope } from '../support/scope.ts'

async function round(seed: number): Promise<string | undefined> {
  const scope = new ProgramScope()
  const random = seededRandom(seed)
  const mode = random() < 0.5 ? 'colo' : 'remus'
  const formats = anyFormats(random)
  try {
    const { primary, secondary } = await startPair(scope, { mode, disks: DISKS, formats })
    const deadAfter = 1 + below(random, 1500)
    const pauses = random() < 0.5
    const { workloads, ended } = await startWorkloads(primary, random, (writes) => {
      if (writes === deadAfter) primary.server.child.signal('SIGKILL')
    })
    const checkpoints = await takeCheckpoints(primary, workloads, pauses)
    await primary.server.child.end()
    for (const workload of workloads) workload.abandon()
    await ended
    await linkLost(secondary.qmp)
    await secondary.qmp.execute('replication-promote')
    return await judge(scope, secondary, checkpoints, workloads)
  } finally {
    await scope.end()
  }
}

killRounds(t, 'a primary killed at a random moment leaves exactly a checkpoint', 200, round)
