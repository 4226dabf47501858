/**
 * The commands that Xen's libxl sends for COLO disks, over all groups of the server: libxl knows none by name.
 * It looks only at whether a command succeeded, so a command that did not do everything fails.
 */

import { Fault } from '../core/fault.ts'
import type { GroupRole, ReplicationGroup } from '../replication/group.ts'
import { allGroups } from './select-groups.ts'

type Groups = readonly ReplicationGroup[]

interface SetReplication {
  readonly enable: boolean
  readonly primary: boolean
  readonly failover: boolean | undefined
}

/** @throws Fault when the groups' roles do not fit, in which case nothing was changed, or a promotion fails. */
export async function xenSetReplication(
  groups: Groups,
  { enable, primary, failover = false }: SetReplication,
): Promise<object> {
  const all = allGroups(groups)
  if (enable && failover) {
    throw new Fault('INVALID', "Parameter 'failover' is true: expected false with enable=true")
  }
  const takeOver = failover && !primary
  // After a failover a toolstack may repeat the command: an active copy has nothing left to do.
  const fitting: GroupRole[] = primary
    ? ['primary']
    : takeOver
      ? ['secondary', 'active']
      : ['secondary']
  for (const group of all) requireRole(group, fitting)
  if (takeOver) {
    await allOf(all.map((group) => group.promote(true)))
  } else {
    for (const group of all) group.setReplicating(enable)
  }
  return {}
}

/** Checkpoints every group at once: their VM is suspended meanwhile. */
export async function xenCheckpoint(groups: Groups): Promise<object> {
  const all = allGroups(groups)
  await allOf(all.map((group) => group.checkpoint(undefined)))
  return {}
}

export function xenReplicationStatus(groups: Groups): { error: boolean; desc?: string } {
  const complaints: string[] = []
  for (const group of groups) {
    const { error, protection, reason } = group.status()
    if (error !== null) complaints.push(`${group.name}: ${error}`)
    else if (protection === 'inconsistent') {
      complaints.push(`${group.name}: inconsistent${reason === null ? '' : `: ${reason}`}`)
    }
  }
  return complaints.length === 0 ? { error: false } : { error: true, desc: complaints.join('; ') }
}

function requireRole(group: ReplicationGroup, fitting: readonly GroupRole[]): void {
  const { role } = group.status()
  if (fitting.includes(role)) return
  throw new Fault('NOT_PERMITTED', `this side is ${role}, expected ${fitting.join(' or ')}`, {
    where: `group ${group.name}`,
    remedy: 'send the command to the other side, or correct its primary and failover arguments',
  })
}

/** Every group is awaited before the first failure is reported: none goes on behind the toolstack's back. */
async function allOf(actions: readonly Promise<unknown>[]): Promise<void> {
  const faults: Fault[] = []
  for (const result of await Promise.allSettled(actions)) {
    if (result.status === 'fulfilled') continue
    const reason: unknown = result.reason
    if (!(reason instanceof Fault))
      throw reason instanceof Error ? reason : new Error(String(reason))
    faults.push(reason)
  }
  const [first, ...more] = faults
  if (first === undefined) return
  if (more.length === 0) throw first
  throw new Fault(first.code, faults.map((fault) => fault.message).join('; '), { cause: first })
}
