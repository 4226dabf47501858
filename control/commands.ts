/**
 * The command table: everything that can be asked of a running server. Every door (QMP, and whatever comes beside it)
 * is an adapter over this table and adds no behaviour. docs/control.md is its reference for users.
 *
 * Invariants:
 *  - A command runs only with arguments that its schema allows.
 *  - A command that did not do what it says fails with a Fault; anything else that is thrown is a bug of ours.
 *  - Names and fields of replies never change; fields may be added.
 */

import type { MaybePromise } from '../core/maybe-promise.ts'
import type { CheckpointResult, GroupStatus, ReplicationGroup } from '../replication/group.ts'
import { check, type ArgumentSchema, type ArgumentValues } from './arguments.ts'
import { matchingGroups, oneGroup } from './select-groups.ts'
import { versionReply } from './version.ts'
import { xenCheckpoint, xenReplicationStatus, xenSetReplication } from './xen-replication.ts'

/** An export as the control plane shows it. */
export interface ExportSummary {
  readonly name: string
  /** Bytes. */
  readonly size: number
  readonly readOnly: boolean
  /** NBD clients that use it now. */
  readonly connections: number
}

/** What commands act on: the server seen from its control plane. */
export interface ControlContext {
  groups(): readonly ReplicationGroup[]
  exports(): readonly ExportSummary[]
  /** Begins an orderly shutdown, as SIGTERM does; returns at once. */
  quit(): void
}

export interface Command {
  readonly name: string
  readonly description: string
  readonly arguments: ArgumentSchema
  /** @throws Fault when the arguments do not fit or the command fails. */
  execute(context: ControlContext, given: Readonly<Record<string, unknown>>): MaybePromise<unknown>
}

interface Definition<Schema extends ArgumentSchema> {
  readonly name: string
  readonly description: string
  readonly arguments: Schema
  run(context: ControlContext, args: ArgumentValues<Schema>): MaybePromise<unknown>
}

function define<const Schema extends ArgumentSchema>(definition: Definition<Schema>): Command {
  return {
    name: definition.name,
    description: definition.description,
    arguments: definition.arguments,
    execute: (context, given) => definition.run(context, check(definition.arguments, given)),
  }
}

/** The longest time that a timer of Node can wait, in milliseconds. */
const LONGEST_MS = 2 ** 31 - 1

const GROUP = {
  type: 'string',
  optional: true,
  meaning: 'the replication group; may be left out where there is only one',
} as const

const table: readonly Command[] = [
  define({
    name: 'query-version',
    description: 'the version of the server',
    arguments: {},
    run: versionReply,
  }),
  define({
    name: 'query-commands',
    description: 'the commands of this server, with what they are for',
    arguments: {},
    run: () => table.map(({ name, description }) => ({ name, description })),
  }),
  define({
    name: 'query-block-exports',
    description: 'the exports, with their size and the number of their clients',
    arguments: {},
    run: (context) => context.exports().map(exportReply),
  }),
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
        type: 'integer',
        min: 1,
        max: LONGEST_MS,
        optional: true,
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
    name: 'xen-set-replication',
    description: 'starts or stops the replication of all groups, or fails over to this side',
    arguments: {
      enable: { type: 'boolean', meaning: 'start or stop' },
      primary: { type: 'boolean', meaning: 'whether this side is the primary' },
      failover: {
        type: 'boolean',
        optional: true,
        meaning: 'with enable=false on a secondary: become the active copy',
      },
    },
    run: (context, args) => xenSetReplication(context.groups(), args),
  }),
  define({
    name: 'xen-colo-do-checkpoint',
    description: 'checkpoints all groups; done when every one is committed',
    arguments: {},
    run: (context) => xenCheckpoint(context.groups()),
  }),
  define({
    name: 'query-xen-replication-status',
    description: 'whether replication has failed, and why',
    arguments: {},
    run: (context) => xenReplicationStatus(context.groups()),
  }),
  define({
    name: 'quit',
    description: 'shuts the server down in order, as SIGTERM does',
    arguments: {},
    run: (context) => {
      context.quit()
      return {}
    },
  }),
]

export const COMMANDS: ReadonlyMap<string, Command> = new Map(
  table.map((command) => [command.name, command]),
)

/** QEMU's BlockExportInfo, and colotap's own fields behind it. */
function exportReply(summary: ExportSummary): object {
  const { name, ...own } = summary
  return { id: name, type: 'nbd', 'node-name': name, 'shutting-down': false, ...own }
}
