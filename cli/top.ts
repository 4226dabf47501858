/** `colotap top`: the status of a server, shown anew again and again, with how often its groups are checkpointed. */

import { setTimeout as delay } from 'node:timers/promises'

import { QmpClient } from '../control/qmp-client.ts'
import type { GroupStatus } from '../replication/group.ts'
import { COMMON, controlOf, statusText } from './ask-server.ts'
import { usageError, type Given, type Subcommand, type Terminal } from './command-line.ts'
import { groupText } from './status-text.ts'

/** Milliseconds between two looks at the server. */
const INTERVAL_MS = 1000

export const top: Subcommand = {
  name: 'top',
  summary: 'show the status again and again, until interrupted',
  positional: 'GROUP',
  options: {
    ...COMMON,
    'interval-ms': { value: 'MS', meaning: `look so often (default: ${INTERVAL_MS})` },
  },
  run: async (given, terminal) => {
    const interval = intervalOf(given)
    const server = await QmpClient.connect(controlOf(given, terminal))
    const [interrupted, over] = [new AbortController(), new AbortController()]
    for (const signal of ['SIGINT', 'SIGTERM'] as const)
      process.once(signal, () => {
        interrupted.abort()
        void server.close()
      })
    void server.ended.then(() => over.abort())
    const rates = new CheckpointRates()
    try {
      while (!over.signal.aborted) {
        await show(server, given, terminal, rates)
        // It ends early with the connection.
        await delay(interval, undefined, { signal: over.signal }).catch(() => undefined)
      }
    } catch (error) {
      if (!interrupted.signal.aborted) throw error
    } finally {
      await server.close()
    }
    const failure = await server.ended
    if (failure !== undefined) throw failure
  },
}

async function show(
  server: QmpClient,
  given: Given,
  terminal: Terminal,
  rates: CheckpointRates,
): Promise<void> {
  const text = await statusText(server, given, (group) =>
    groupText(group, rates.of(group, performance.now())),
  )
  if (given.has('json')) terminal.print(text)
  else if (terminal.screen === undefined) terminal.print(`${text}\n`)
  else terminal.screen(text)
}

/** How often groups are checkpointed, from two looks at each. */
export class CheckpointRates {
  readonly #seen = new Map<string, { readonly checkpoint: number; readonly nowMs: number }>()

  /** @returns checkpoints a second since the look before; undefined at the first */
  of({ group, checkpoint }: GroupStatus, nowMs: number): number | undefined {
    const before = this.#seen.get(group)
    this.#seen.set(group, { checkpoint, nowMs })
    if (before === undefined || nowMs <= before.nowMs) return undefined
    return (1000 * Math.max(0, checkpoint - before.checkpoint)) / (nowMs - before.nowMs)
  }
}

/** @throws UsageError when the number is none */
function intervalOf(given: Given): number {
  const text = given.value('interval-ms')
  if (text === undefined) return INTERVAL_MS
  if (/^[1-9]\d{0,7}$/.test(text)) return Number(text)
  throw usageError(top, `--interval-ms "${text}" is not a number of milliseconds`)
}
