/** The commands on replication groups. */

import { Fault } from '../core/fault.ts'
import { TiB } from '../core/units.ts'
import { ACKS, type CheckpointResult, type GroupStatus } from '../replication/group.ts'
import { LONGEST_MS } from './arguments.ts'
import { blktap2Flush } from './blktap2-flush.ts'
import { define, type Command } from './command.ts'
import { matchingGroups, oneGroup } from './select-groups.ts'

const GROUP = {
  type: 'string',
  optional: true,
  meaning: 'the replication group; may be left out where there is only one',
} as const

const TIMEOUT = {
  type: 'integer',
  min: 1,
  max: LONGEST_MS,
  optional: true,
} as const

export const REPLICATION_COMMANDS: readonly Command[] = [
  define({
    name: 'replication-status',
    description: 'role, protection, last checkpoint and disks of the replication groups',
    arguments: { group: { ...GROUP, meaning: 'only this replication group' } },
    run: (context, { group }): { groups: GroupStatus[] } => ({
      groups: matchingGroups(context.groups(), group).map((match) => match.status()),
    }),
  }),
  define({
    name: 'replication-checkpoint',
    description: 'makes a checkpoint; done when it is known to be committed on the secondary',
    arguments: {
      group: GROUP,
      timeoutMs: {
        ...TIMEOUT,
        meaning: 'fail when it is not committed after so many milliseconds',
      },
    },
    run: (context, { group, timeoutMs }): Promise<CheckpointResult> =>
      oneGroup(context.groups(), group).checkpoint(timeoutMs),
  }),
  define({
    name: 'replication-promote',
    description: 'makes a secondary the active copy; changes nothing on an active one',
    arguments: {
      group: GROUP,
      force: {
        type: 'boolean',
        optional: true,
        meaning: 'also while the primary is still connected',
      },
    },
    run: (context, { group, force }): Promise<GroupStatus> =>
      oneGroup(context.groups(), group).promote(force ?? false),
  }),
  define({
    name: 'replication-demote',
    description: 'makes a primary a secondary; changes nothing on a secondary',
    arguments: {
      group: GROUP,
      force: {
        type: 'boolean',
        optional: true,
        meaning: 'also while a secondary follows it, so that none is active afterwards',
      },
    },
    run: (context, { group, force }): Promise<GroupStatus> =>
      oneGroup(context.groups(), group).demote(force ?? false),
  }),
  define({
    name: 'replication-switchover',
    description: 'exchanges the roles of a protected pair, without loss; run on the primary',
    arguments: {
      group: GROUP,
      timeoutMs: { ...TIMEOUT, meaning: 'fail when a step takes longer, in milliseconds' },
    },
    run: (context, { group, timeoutMs }): Promise<GroupStatus> =>
      oneGroup(context.groups(), group).switchover(timeoutMs),
  }),
  define({
    name: 'replication-connect',
    description: 'lets a group connect, and says whose changes are given up after a split brain',
    arguments: {
      group: GROUP,
      discard: {
        type: 'choice',
        of: ['local', 'remote'],
        optional: true,
        meaning: 'give up what was changed on this side, or on the other one',
      },
    },
    run: async (context, { group, discard }): Promise<GroupStatus> => {
      const found = oneGroup(context.groups(), group)
      found.setReplicating(true)
      return discard === undefined ? found.status() : found.resolveSplit(discard)
    },
  }),
  define({
    name: 'replication-disconnect',
    description: 'ends the link of a group until replication-connect',
    arguments: { group: GROUP },
    run: (context, { group }): GroupStatus => {
      const found = oneGroup(context.groups(), group)
      found.setReplicating(false)
      return found.status()
    },
  }),
  define({
    name: 'replication-resync',
    description: 'copies the disks of a primary to its secondary as a whole again',
    arguments: {
      group: GROUP,
      checksums: {
        type: 'boolean',
        optional: true,
        meaning: 'compare first, and send only what differs',
      },
    },
    run: (context, { group, checksums }): Promise<GroupStatus> =>
      oneGroup(context.groups(), group).resync(checksums ?? false),
  }),
  define({
    name: 'replication-verify',
    description:
      'begins to compare the disks of a primary with what its secondary holds, beside the guest',
    arguments: {
      group: GROUP,
      repair: {
        type: 'boolean',
        optional: true,
        meaning: 'send again what differs, once everything was compared',
      },
      cancel: { type: 'boolean', optional: true, meaning: 'end the one under way instead' },
    },
    run: (context, { group, repair, cancel }): GroupStatus => {
      if (repair === true && cancel === true)
        throw new Fault('INVALID', 'Parameters repair and cancel exclude each other')
      const wish = cancel === true ? 'cancel' : repair === true ? 'repair' : 'compare'
      return oneGroup(context.groups(), group).verify(wish)
    },
  }),
  define({
    name: 'replication-acknowledge',
    description: 'takes back the alarms of a group: an operator has seen them',
    arguments: { group: GROUP },
    run: (context, { group }): GroupStatus => oneGroup(context.groups(), group).acknowledge(),
  }),
  define({
    name: 'replication-set',
    description: 'changes settings of a running primary; on-link-loss=continue ends a freeze',
    arguments: {
      group: GROUP,
      onLinkLoss: {
        type: 'choice',
        of: ['continue', 'freeze'],
        optional: true,
        meaning: 'whether the primary goes on without its secondary',
      },
      ack: {
        type: 'choice',
        of: ACKS,
        optional: true,
        meaning: 'what the secondary has of a write before it completes',
      },
      intervalMs: {
        type: 'integer',
        min: 0,
        max: 3_600_000,
        optional: true,
        meaning: 'milliseconds between checkpoints that the primary makes by itself; 0: none',
      },
      resyncRate: {
        type: 'integer',
        min: 0,
        max: TiB,
        optional: true,
        meaning: 'bytes a second that a resync sends at most; 0: no limit',
      },
    },
    run: (context, { group, onLinkLoss, ack, intervalMs, resyncRate }): GroupStatus =>
      oneGroup(context.groups(), group).configure({ onLinkLoss, ack, intervalMs, resyncRate }),
  }),
  define({
    name: 'blktap2-flush',
    description: 'checkpoints a primary, one flush at a time: what the sockets of blktap2 ask for',
    arguments: { group: GROUP },
    run: (context, { group }): Promise<CheckpointResult> =>
      blktap2Flush(oneGroup(context.groups(), group)),
  }),
]
