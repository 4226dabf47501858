/** The subcommands that ask a running server something: each is one command of the control protocol, shown. */

import type { ExportSummary } from '../control/command.ts'
import { QmpClient, type ReceivedEvent } from '../control/qmp-client.ts'
import { formatSize } from '../core/units.ts'
import type { CheckpointResult, GroupStatus } from '../replication/group.ts'
import { usageError, type Given, type Subcommand, type Terminal } from './command-line.ts'
import { CONTROL_OPTION, defaultControlPath } from './control-socket.ts'
import { exportsText, formatTime, groupText } from './status-text.ts'

/** What every subcommand that asks a server understands. */
export const COMMON = {
  control: CONTROL_OPTION,
  json: { meaning: "print the server's reply as it is, for programs" },
} as const

export const status: Subcommand = {
  name: 'status',
  summary: 'show the replication groups and the exports of a server',
  positional: 'GROUP',
  options: COMMON,
  run: (given, terminal) =>
    asking(given, terminal, async (server) => {
      terminal.print(await statusText(server, given, (group) => groupText(group)))
    }),
}

/** The status of a server or of one group: the reply as it is with --json, else in words. */
export async function statusText(
  server: QmpClient,
  given: Given,
  inWords: (group: GroupStatus) => string,
): Promise<string> {
  const args = groupOf(given)
  const reply = (await server.execute('replication-status', args)) as { groups: GroupStatus[] }
  if (given.has('json')) return JSON.stringify(reply)
  const parts = reply.groups.map((group) => inWords(group))
  if (parts.length === 0) parts.push('no replication groups: nothing here is replicated')
  if (given.positional === undefined) {
    const exports = (await server.execute('query-block-exports')) as Exported[]
    parts.push(exportsText(exports.map((each) => ({ ...each, name: each.id }))))
  }
  return parts.join('\n\n')
}

type Exported = Omit<ExportSummary, 'name'> & { readonly id: string }

export const checkpoint: Subcommand = {
  name: 'checkpoint',
  summary: 'make a checkpoint; done when it is known to be committed on the secondary',
  positional: 'GROUP',
  options: {
    ...COMMON,
    'timeout-ms': { value: 'MS', meaning: 'fail when it is not committed after so long' },
  },
  run: (given, terminal) => {
    const args = { ...groupOf(given), ...timeoutOf(checkpoint, given) }
    return asking(given, terminal, async (server) => {
      const reply = (await server.execute('replication-checkpoint', args)) as CheckpointResult
      terminal.print(given.has('json') ? JSON.stringify(reply) : checkpointText(reply))
    })
  },
}

export const events: Subcommand = {
  name: 'events',
  summary: 'show what happens on a server as it happens, until interrupted',
  positional: 'GROUP',
  options: COMMON,
  run: async (given, terminal) => {
    const show = (event: ReceivedEvent): void => {
      if (given.positional !== undefined && event.data['group'] !== given.positional) return
      terminal.print(given.has('json') ? JSON.stringify(event) : eventText(event))
    }
    const path = controlOf(given, terminal)
    const server = await QmpClient.connect(path, show)
    process.once('SIGINT', () => void server.close())
    process.once('SIGTERM', () => void server.close())
    if (!given.has('json')) terminal.print(`watching ${path} until interrupted`)
    const failure = await server.ended
    if (failure !== undefined) throw failure
  },
}

/** Asks a running server, and closes the connection whatever comes of it. */
export async function asking(
  given: Given,
  terminal: Terminal,
  ask: (server: QmpClient) => Promise<void>,
): Promise<void> {
  const server = await QmpClient.connect(controlOf(given, terminal))
  try {
    await ask(server)
  } finally {
    await server.close()
  }
}

/** The path of the server's control socket. */
export function controlOf(given: Given, terminal: Terminal): string {
  return given.value('control') ?? defaultControlPath(terminal)
}

export function groupOf({ positional }: Given): { readonly group?: string } {
  return positional === undefined ? {} : { group: positional }
}

/** @throws UsageError when the number is none */
export function timeoutOf(of: Subcommand, given: Given): { readonly timeoutMs?: number } {
  const text = given.value('timeout-ms')
  if (text === undefined) return {}
  if (/^\d{1,15}$/.test(text)) return { timeoutMs: Number(text) }
  throw usageError(of, `--timeout-ms "${text}" is not a whole number`)
}

function checkpointText({
  checkpoint: number,
  pauseUs,
  commitUs,
  bytes,
}: CheckpointResult): string {
  const times = `pause ${formatTime(pauseUs)}, of it commit ${formatTime(commitUs)}`
  return `checkpoint ${number} is committed: ${times}, ${formatSize(bytes)}`
}

function eventText({ event, data, timestamp }: ReceivedEvent): string {
  const time = new Date(timestamp.seconds * 1000 + timestamp.microseconds / 1000).toISOString()
  const fields = Object.entries(data).map(([name, value]) => `${name}=${JSON.stringify(value)}`)
  return [time, event, ...fields].join(' ')
}
