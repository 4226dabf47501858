/** What the checkpoint sockets of blktap2 ask for: a checkpoint of a primary, one at a time (docs/blktap2.md). */

import { Fault } from '../core/fault.ts'
import type { CheckpointResult, ReplicationGroup } from '../replication/group.ts'

const flushing = new WeakSet<ReplicationGroup>()

/** @throws Fault when this side is no primary, another flush is running, or the checkpoint is not known to be committed */
export async function blktap2Flush(group: ReplicationGroup): Promise<CheckpointResult> {
  const where = `group ${group.name}`
  const { role } = group.status()
  if (role !== 'primary') {
    const remedy = 'flush on the primary'
    throw new Fault('NOT_PERMITTED', `this side is ${role}, expected primary`, { where, remedy })
  }
  if (flushing.has(group)) {
    const remedy = 'wait for its end'
    throw new Fault('IN_USE', 'another flush is running', { where, remedy })
  }
  flushing.add(group)
  try {
    return await group.checkpoint(undefined)
  } finally {
    flushing.delete(group)
  }
}
