/**
 * The command table: everything that can be asked of a running server. Every door (QMP, and whatever comes beside it)
 * is an adapter over this table and adds no behaviour. docs/control.md is its reference for users.
 *
 * Invariants:
 *  - A command runs only with arguments that its schema allows.
 *  - A command that did not do what it says fails with a Fault; anything else that is thrown is a bug of ours.
 *  - Names and fields of replies never change; fields may be added.
 */

import { beginBackup, changesOf, endBackup, logsReply } from './change-logs.ts'
import { define, type Command } from './command.ts'
import { EXPORT_COMMANDS } from './export-commands.ts'
import { PIPELINE_COMMANDS } from './pipeline-commands.ts'
import { REPLICATION_COMMANDS } from './replication-commands.ts'
import { versionReply } from './version.ts'
import { xenCheckpoint, xenReplicationStatus, xenSetReplication } from './xen-replication.ts'

const LOGGED = { type: 'string', meaning: 'an export with a log layer' } as const

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
  ...EXPORT_COMMANDS,
  ...PIPELINE_COMMANDS,
  ...REPLICATION_COMMANDS,
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
    name: 'query-change-logs',
    description: 'the exports whose changes are logged for backups, and how much has changed',
    arguments: {},
    run: (context) => logsReply(context.changeLogs()),
  }),
  define({
    name: 'change-log-begin',
    description: 'begins a backup: sets aside what has changed since the last one',
    arguments: { export: LOGGED },
    run: (context, args) => beginBackup(context.changeLogs(), args.export),
  }),
  define({
    name: 'change-log-read',
    description: 'ranges that the backup under way must copy',
    arguments: {
      export: LOGGED,
      from: {
        type: 'integer',
        min: 0,
        max: Number.MAX_SAFE_INTEGER,
        optional: true,
        meaning: 'go on from this byte, the `next` of the reply before',
      },
    },
    run: (context, args) => changesOf(context.changeLogs(), args.export, args.from ?? 0),
  }),
  define({
    name: 'change-log-end',
    description: 'ends the backup; one that failed leaves its ranges to the next one',
    arguments: {
      export: LOGGED,
      success: { type: 'boolean', meaning: 'whether the backup has all that it must copy' },
    },
    run: (context, args) => endBackup(context.changeLogs(), args.export, args.success),
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
