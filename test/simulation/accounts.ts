/** What a run that has failed says of its sides. */

import type { ReplicationGroup } from '../../replication/group.ts'
import { describe } from './guest.ts'
import type { World } from './world.ts'

/** Requests of the guests that were not answered; those to a process that is gone never are. */
export function outstandingOf({ primary, secondary }: World): string[] {
  return [primary, secondary].flatMap(({ life, guest }) =>
    life.alive ? [...guest.outstanding].map((request) => `${life.name}: ${describe(request)}`) : [],
  )
}

/** Why each is not well. */
export function reasonsOf(groups: readonly ReplicationGroup[]): string {
  return groups
    .map((group) => {
      const { role, protection, reason } = group.status()
      return `${role} ${protection} (${reason ?? 'no reason'})`
    })
    .join(', ')
}
