/** The subcommands that change the role or the link of a group: each is one command, and shows the status that results. */

import type { QmpClient } from '../control/qmp-client.ts'
import { parseSize } from '../core/units.ts'
import type { GroupStatus } from '../replication/group.ts'
import { asking, COMMON, groupOf, timeoutOf } from './ask-server.ts'
import { usageError, type Given, type OptionTable, type Subcommand } from './command-line.ts'
import { groupText } from './status-text.ts'

type Arguments = Readonly<Record<string, unknown>>

/** @param args what the options say, beside the group */
function changing(
  name: string,
  summary: string,
  options: OptionTable,
  args: (given: Given) => Arguments,
): Subcommand {
  return {
    name,
    summary,
    positional: 'GROUP',
    options: { ...COMMON, ...options },
    run: (given, terminal) =>
      asking(given, terminal, async (server: QmpClient) => {
        const reply = await server.execute(`replication-${name}`, {
          ...groupOf(given),
          ...args(given),
        })
        terminal.print(given.has('json') ? JSON.stringify(reply) : groupText(reply as GroupStatus))
      }),
  }
}

const forced = (given: Given): Arguments => (given.has('force') ? { force: true } : {})

export const promote = changing(
  'promote',
  'make a secondary the active copy, because its primary is lost',
  {
    force: { meaning: 'also while the primary is still connected, or when the copy is not whole' },
  },
  forced,
)

export const demote = changing(
  'demote',
  'make a primary a secondary, so that the other side can lead',
  { force: { meaning: 'also while a secondary follows it' } },
  forced,
)

export const switchover: Subcommand = changing(
  'switchover',
  'exchange the roles of a protected pair, without loss',
  { 'timeout-ms': { value: 'MS', meaning: 'fail when a step takes longer' } },
  (given) => timeoutOf(switchover, given),
)

export const connect = changing(
  'connect',
  'let a group connect, and choose whose changes to give up after a split brain',
  {
    discard: {
      value: 'local|remote',
      meaning: 'give up what was changed on this side, or on the other',
    },
  },
  (given) => {
    const discard = given.value('discard')
    return discard === undefined ? {} : { discard }
  },
)

export const disconnect = changing('disconnect', 'end the link of a group', {}, () => ({}))

export const resync = changing(
  'resync',
  'copy the disks of a primary to its secondary as a whole again',
  { checksums: { meaning: 'compare first, and send only what differs' } },
  (given) => (given.has('checksums') ? { checksums: true } : {}),
)

export const acknowledge = changing(
  'acknowledge',
  'take back the alarms of a group, which stay in its status until then',
  {},
  () => ({}),
)

export const set: Subcommand = changing(
  'set',
  'change settings of a running primary',
  {
    'on-link-loss': {
      value: 'continue|freeze',
      meaning: 'whether it goes on without its secondary; continue also ends a freeze',
    },
    ack: {
      value: 'sent|received|durable',
      meaning: 'what the secondary has of a write before it completes',
    },
    interval: { value: 'MS', meaning: 'make a checkpoint by itself so often; 0: not at all' },
    'resync-rate': { value: 'SIZE', meaning: 'the most that a resync sends a second; 0: no limit' },
  },
  (given) => {
    const [onLinkLoss, ack, interval, rate] = [
      'on-link-loss',
      'ack',
      'interval',
      'resync-rate',
    ].map((name) => given.value(name))
    if (interval !== undefined && !/^\d{1,9}$/.test(interval))
      throw usageError(set, `--interval "${interval}" is not a whole number`)
    return {
      ...(onLinkLoss === undefined ? {} : { onLinkLoss }),
      ...(ack === undefined ? {} : { ack }),
      ...(interval === undefined ? {} : { intervalMs: Number(interval) }),
      ...(rate === undefined ? {} : { resyncRate: rateOf(rate) }),
    }
  },
)

/** @throws UsageError when it is no size */
function rateOf(text: string): number {
  try {
    return parseSize(text)
  } catch (error) {
    throw usageError(set, `--resync-rate: ${error instanceof Error ? error.message : text}`)
  }
}
