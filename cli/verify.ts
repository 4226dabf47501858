/** The subcommand that compares both sides of a group, and waits for the outcome. */

import { QmpClient, type ReceivedEvent } from '../control/qmp-client.ts'
import { Fault } from '../core/fault.ts'
import { formatSize } from '../core/units.ts'
import type { GroupStatus, VerifyReport } from '../replication/group.ts'
import { asking, COMMON, controlOf, groupOf } from './ask-server.ts'
import { usageError, type Given, type Subcommand, type Terminal } from './command-line.ts'
import { bar } from './progress.ts'
import { groupText } from './status-text.ts'

/** Milliseconds between two looks at how far it is, where somebody watches. */
const PAUSE = 500

export const verify: Subcommand = {
  name: 'verify',
  summary: 'compare the disks of a primary with what its secondary holds, while they are in use',
  positional: 'GROUP',
  options: {
    ...COMMON,
    repair: { meaning: 'send again what differs, once everything was compared' },
    cancel: { meaning: 'end the comparison that is under way, instead of beginning one' },
  },
  notes:
    'Waits for the outcome: 0 says that both sides are equal, 1 that they are not or that the comparison did not finish.\nIt reads no more a second than resync-rate= says. Interrupted, it goes on without this command: see colotap status.',
  run: (given, terminal) => {
    if (given.has('cancel') && given.has('repair'))
      throw usageError(verify, '--cancel and --repair exclude each other')
    return given.has('cancel') ? cancel(given, terminal) : compare(given, terminal)
  },
}

function cancel(given: Given, terminal: Terminal): Promise<void> {
  return asking(given, terminal, async (server) => {
    const reply = await server.execute('replication-verify', { ...groupOf(given), cancel: true })
    terminal.print(given.has('json') ? JSON.stringify(reply) : groupText(reply as GroupStatus))
  })
}

async function compare(given: Given, terminal: Terminal): Promise<void> {
  const outcomes: ReceivedEvent[] = []
  let told = (): void => undefined
  const server = await QmpClient.connect(controlOf(given, terminal), (event) => {
    if (event.event !== 'REPLICATION_VERIFY') return
    outcomes.push(event)
    told()
  })
  try {
    const args = { ...groupOf(given), ...(given.has('repair') ? { repair: true } : {}) }
    const { group } = (await server.execute('replication-verify', args)) as GroupStatus
    const stopWatching = watch(server, group, terminal)
    const report = await new Promise<VerifyReport>((resolve, reject) => {
      told = () => {
        const outcome = outcomes.find(({ data }) => data['group'] === group)
        if (outcome !== undefined) resolve(outcome.data as unknown as VerifyReport)
      }
      told()
      void server.ended.then((failure) => {
        if (failure !== undefined) reject(failure)
      })
    }).finally(stopWatching)
    terminal.print(given.has('json') ? JSON.stringify(report) : verifyText(report))
    const failure = failureOf(report, group)
    if (failure !== undefined) throw failure
  } finally {
    await server.close()
  }
}

/** Shows how far it is, where somebody watches. @returns ends that */
function watch(server: QmpClient, group: string, { progress }: Terminal): () => void {
  if (progress === undefined) return () => undefined
  const look = async (): Promise<void> => {
    const reply = (await server.execute('replication-status', { group })) as {
      groups: GroupStatus[]
    }
    const report = reply.groups[0]?.verify
    if (report?.state === 'running')
      progress(`comparing ${bar(report.checkedBytes, report.totalBytes)}`)
  }
  const timer = setInterval(() => void look().catch(() => undefined), PAUSE)
  return () => {
    clearInterval(timer)
    progress('')
  }
}

/** The outcome in words, with the ranges that differ. */
function verifyText(report: VerifyReport): string {
  const { state, checkedBytes, totalBytes, differentBytes, ranges, omittedRanges } = report
  if (state === 'equal') return `both sides are equal: ${formatSize(totalBytes)} compared`
  const lines = [`${formatSize(checkedBytes)} of ${formatSize(totalBytes)} compared`]
  if (differentBytes > 0) lines.push(`${formatSize(differentBytes)} differ:`)
  for (const { disk, at, length } of ranges) lines.push(`  disk ${disk}: ${length} bytes at ${at}`)
  if (omittedRanges > 0) lines.push(`  and ${omittedRanges} more`)
  return lines.join('\n')
}

function failureOf(report: VerifyReport, group: string): Fault | undefined {
  const { state, reason, differentBytes, repair } = report
  const where = `group ${group}`
  if (state === 'unfinished')
    return new Fault('IO', `the comparison did not finish: ${reason ?? 'no reason is known'}`, {
      where,
      remedy: 'run it again when the group is protected',
    })
  if (state === 'equal') return undefined
  return new Fault('IO', `the two sides differ in up to ${differentBytes} bytes`, {
    where,
    remedy: repair
      ? 'they are sent again: verify once more, and find out why they differed'
      : 'run it with --repair to send them again, and find out why they differ',
  })
}
