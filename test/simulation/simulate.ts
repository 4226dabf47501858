/**
 * Runs simulations from the command line:  npm run simulate -- [--seed N] [--count M] [--trace]
 * A failure prints its seed and the end of its trace; the same seed with --trace prints all of it.
 */

import { parseArgs } from 'node:util'

import { simulate } from './run.ts'

const LAST_LINES = 60

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    count: { type: 'string', default: '1000' },
    trace: { type: 'boolean', default: false },
  },
})
const first = values.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed)
const count = values.trace ? 1 : Number(values.count)

const startedMs = performance.now()
const failed: number[] = []
let commits = 0
let events = 0
for (let seed = first; seed < first + count; seed += 1) {
  try {
    const summary = await simulate(seed, values.trace ? (line) => console.log(line) : undefined)
    commits += summary.commits
    events += summary.events
    if (values.trace) console.log(summary)
  } catch (error) {
    failed.push(seed)
    await report(seed, error)
  }
}
const seconds = (performance.now() - startedMs) / 1000
console.log(
  `${count} runs from seed ${first}: ${failed.length} failed; ${(count / seconds).toFixed(1)} runs/s, ${events} events, ${commits} checkpoints committed`,
)
if (failed.length > 0) {
  console.log(`failed seeds: ${failed.join(' ')}`)
  process.exitCode = 1
}

async function report(seed: number, error: unknown): Promise<void> {
  console.log(
    `seed ${seed}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
  )
  if (failed.length > 1) return
  const lines: string[] = []
  await simulate(seed, (line) => lines.push(line)).catch(() => undefined)
  console.log(lines.slice(-LAST_LINES).join('\n'))
}
