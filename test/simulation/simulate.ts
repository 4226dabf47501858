/**
 * Runs simulations from the command line:
 *
 *     npm run simulate -- [--seed N] [--count M] [--jobs J]     a batch, on all cores unless told otherwise
 *     npm run simulate -- --seed N --trace                      one run, with its whole story
 *
 * A failure prints its seed and the end of its story.
 */

import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'

import { simulateBatch, type Failure } from './batch.ts'
import { simulate } from './run.ts'

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    count: { type: 'string', default: '1000' },
    jobs: { type: 'string', default: String(availableParallelism()) },
    trace: { type: 'boolean', default: false },
  },
})
const first = wholeNumber('seed', values.seed ?? String(Math.floor(Math.random() * 2 ** 31)))
const count = wholeNumber('count', values.count)
const jobs = wholeNumber('jobs', values.jobs)

if (values.trace) console.log(await simulate(first, (line) => console.log(line)))
else await runBatch()

async function runBatch(): Promise<void> {
  const startedMs = performance.now()
  const seconds = (): number => (performance.now() - startedMs) / 1000
  let shownAt = 0
  const { runs, failures, events, commits } = await simulateBatch({
    ...{ firstSeed: first, count, jobs },
    failed: show,
    progress: (done, failed) => {
      if (seconds() - shownAt < 10) return
      shownAt = seconds()
      console.log(`${done} of ${count} runs, ${failed} failed, ${(done / seconds()).toFixed(1)}/s`)
    },
  })
  const rate = (runs / seconds()).toFixed(1)
  console.log(
    `${runs} runs from seed ${first} in ${seconds().toFixed(0)} s on ${jobs} threads: ${failures.length} failed; ${rate} runs/s, ${events} events, ${commits} checkpoints committed`,
  )
  if (failures.length === 0) return
  console.log(`failed seeds: ${failures.map(({ seed }) => seed).join(' ')}`)
  process.exitCode = 1
}

function show({ seed, reason, story }: Failure): void {
  console.log(`seed ${seed}: ${reason}`)
  for (const line of story) console.log(line)
}

function wholeNumber(option: string, text: string): number {
  const number = Number(text)
  if (Number.isSafeInteger(number) && number >= 0) return number
  console.error(`--${option} is a whole number, not "${text}"`)
  process.exit(2)
}
