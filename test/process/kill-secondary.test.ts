/**
 * With a journal a checkpoint also survives the death of the secondary, alone or together with the primary's, as often
 * as it comes: a process that is started again has exactly the last acknowledged checkpoint, or the one under way.
 *
 * KILL_ROUNDS and KILL_SEED choose how many moments and which ones.
 */

import t from 'tap'
import { DISKS, judge, startWorkloads, takeCheckpoints } from '../support/block-workload.ts'
import { killRounds } from '../support/kill-rounds.ts'
import { below, seededRandom } from '../../core/seeded-random.ts'
import {
  groupState,
  protection,
  restartHost,
  startPair,
  type ReplicaHost,
} from '../support/replica-pair.ts'
import { anyFormats, imageContent } from '../support/replica-images.ts'
import { ProgramScope } from '../support/scope.ts'

/** Both hosts lose their power; the secondary comes back, perhaps to lose it again while it recovers. */
async function bothDie(seed: number): Promise<string | undefined> {
  const scope = new ProgramScope()
  const random = seededRandom(seed)
  const mode = random() < 0.5 ? 'colo' : 'remus'
  const formats = anyFormats(random)
  try {
    const { primary, secondary } = await startPair(scope, { mode, disks: DISKS, formats })
    const deadAfter = 1 + below(random, 1500)
    const { workloads, ended } = await startWorkloads(primary, random, (writes) => {
      if (writes !== deadAfter) return
      secondary.server.child.signal('SIGKILL')
      primary.server.child.signal('SIGKILL')
    })
    const checkpoints = await takeCheckpoints(primary, workloads, random() < 0.5)
    await Promise.all([primary.server.child.end(), secondary.server.child.end()])
    for (const workload of workloads) workload.abandon()
    await ended
    let recovered = await restartHost(scope, secondary)
    for (let again = below(random, 3); again > 0; again -= 1) {
      await recovered.server.child.kill()
      recovered = await restartHost(scope, secondary)
    }
    await recovered.qmp.execute('replication-promote')
    const violation = await judge(scope, recovered, checkpoints, workloads)
    return violation ?? (await staysActive(await restartHost(scope, secondary)))
  } finally {
    await scope.end()
  }
}

async function staysActive({ qmp, server }: ReplicaHost): Promise<string | undefined> {
  const { role } = await groupState(qmp)
  const { code } = await server.stop()
  if (role !== 'active') return `a promoted secondary was ${role} after a restart`
  return code === 0 ? undefined : `it ended with ${String(code)}`
}

/** The secondary dies and comes back, and the pair is whole again without anybody's help. */
async function secondaryDies(seed: number): Promise<string | undefined> {
  const scope = new ProgramScope()
  const random = seededRandom(seed)
  const mode = random() < 0.5 ? 'colo' : 'remus'
  const formats = anyFormats(random)
  try {
    const { primary, secondary } = await startPair(scope, { mode, disks: DISKS, formats })
    const deadAfter = 1 + below(random, 1500)
    const { workloads, ended } = await startWorkloads(primary, random, (writes) => {
      if (writes === deadAfter) secondary.server.child.signal('SIGKILL')
    })
    const checkpoints = await takeCheckpoints(primary, workloads, false)
    const confirmed = Math.max(...checkpoints.keys()) - 1
    await secondary.server.child.end()
    const recovered = await restartHost(scope, secondary)
    const { checkpoint, durable } = await groupState(recovered.qmp)
    if (!durable) return 'a secondary with a journal is not durable'
    if (checkpoint < confirmed) return `recovered ${checkpoint}, though ${confirmed} was confirmed`
    await protection(primary.qmp, 'protected')
    for (const workload of workloads) workload.stop()
    await ended
    await primary.qmp.execute('replication-checkpoint')
    const ends = [await primary.server.stop(), await recovered.server.stop()]
    if (ends.some(({ code }) => code !== 0)) return `ended with ${JSON.stringify(ends)}`
    for (const name of Object.keys(DISKS)) {
      const [ours, theirs] = [
        await imageContent(scope, primary.images[name]!, primary.format),
        await imageContent(scope, recovered.images[name]!, recovered.format),
      ]
      if (!ours.equals(theirs)) return `images of ${name} differ`
    }
    return undefined
  } finally {
    await scope.end()
  }
}

killRounds(t, 'both hosts killed at a random moment leave exactly a checkpoint', 20, bothDie)
killRounds(t, 'a secondary killed at a random moment comes back by itself', 20, secondaryDies)
