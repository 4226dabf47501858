/** Which replication group a command means: the one it names, or the only one there is. */

import { Fault } from '../core/fault.ts'
import type { ReplicationGroup } from '../replication/group.ts'
import { quote } from './arguments.ts'

type Groups = readonly ReplicationGroup[]

/** @throws Fault NOT_FOUND or INVALID, naming the groups there are. */
export function oneGroup(groups: Groups, name: string | undefined): ReplicationGroup {
  const [only, second] = allGroups(groups)
  if (name !== undefined) return named(groups, name)
  if (second !== undefined) {
    throw new Fault('INVALID', 'there are several replication groups', {
      remedy: `name one of: ${namesOf(groups)}`,
    })
  }
  return only
}

/** The named group, or all of them; none at all is an answer here. */
export function matchingGroups(groups: Groups, name: string | undefined): Groups {
  return name === undefined ? groups : [named(groups, name)]
}

/** @throws Fault NOT_FOUND when there is none: a toolstack that commands replication expects to have it. */
export function allGroups(groups: Groups): readonly [ReplicationGroup, ...ReplicationGroup[]] {
  const [first, ...rest] = groups
  if (first === undefined) {
    throw new Fault('NOT_FOUND', 'this server has no replication group', {
      remedy: 'serve an export whose pipeline has a colo or remus layer',
    })
  }
  return [first, ...rest]
}

function named(groups: Groups, name: string): ReplicationGroup {
  const group = groups.find((candidate) => candidate.name === name)
  if (group !== undefined) return group
  throw new Fault('NOT_FOUND', `no replication group is named ${quote(name)}`, {
    remedy: groups.length === 0 ? 'this server has none' : `there is: ${namesOf(groups)}`,
  })
}

function namesOf(groups: Groups): string {
  return groups.map((group) => group.name).join(', ')
}
