/**
 * A planned exchange of the roles, until the primary has left its role to its secondary.
 *
 * Invariant 5: nothing is missing in the checkpoint that the secondary takes over at: no write was under way when it was announced, and
 * none begins after it. Where the link does not outlast that checkpoint, this side stays the primary.
 */

import { Fault } from '../core/fault.ts'
import type { PrimarySide } from './primary-side.ts'

export interface Switchover {
  readonly group: string
  /** Undefined on a secondary. */
  readonly primary: PrimarySide | undefined
  /** Whether the other side can connect to this one. */
  readonly listens: boolean
  readonly timeoutMs: number
  /** Gives up the role; `decided` is called when that is durable. */
  readonly stepDown: (reason: string, decided: () => void) => Promise<void>
}

/** Resolves when this side is a secondary. @throws Fault where it stays what it is */
export async function leaveRole(switchover: Switchover): Promise<void> {
  const primary = leaving(switchover)
  const checkpoint = await lastCheckpoint(switchover, primary)
  await switchover.stepDown('its role goes to the other side', () => primary.handOver(checkpoint))
}

/** @throws Fault where the roles cannot be exchanged */
function leaving({ group, primary, listens }: Switchover): PrimarySide {
  const fault = (what: string, remedy: string): Fault =>
    new Fault('NOT_PERMITTED', what, { where: `group ${group}`, remedy })
  if (primary === undefined)
    throw fault('only a primary can leave its role to its secondary', 'run it on the primary')
  primary.assertStays()
  if (primary.machine.protection !== 'protected')
    throw fault(
      'there is no secondary that could take over at once',
      'wait until the group is protected',
    )
  refuseLacking(group, primary)
  if (!listens)
    throw fault(
      'nobody could follow: this side does not listen',
      'give it listen=HOST:PORT, and the other side peer= with the same address',
    )
  return primary
}

/** @throws Fault where the other side could not serve all disks */
function refuseLacking(group: string, { machine }: PrimarySide): void {
  const [name] = Object.keys(machine.lacking)
  if (name === undefined) return
  throw new Fault('NOT_PERMITTED', `disk "${name}" is not on the other side yet`, {
    where: `group ${group}`,
    remedy: 'wait until its copy is whole and a checkpoint was made, or remove it',
  })
}

/** The guest's writes wait from before this checkpoint on. @returns its number */
async function lastCheckpoint(
  { group, timeoutMs }: Switchover,
  primary: PrimarySide,
): Promise<number> {
  try {
    await primary.hold()
    const { checkpoint } = await primary.checkpoint(timeoutMs)
    const { protection, reason } = primary.machine
    // The other side may have removed a disk meanwhile.
    refuseLacking(group, primary)
    if (protection === 'protected') return checkpoint
    throw new Fault('LINK_LOST', `the secondary has gone meanwhile: ${reason ?? protection}`, {
      where: `group ${group}`,
      remedy: 'this side stays the primary; wait until the group is protected',
    })
  } catch (error) {
    primary.unhold()
    throw error
  }
}
