/**
 * Both sides of a group, the program's own code, through thousands of virtual accidents (the other files of this
 * folder). One batch of seeds is always the same, one is new each time; a failure names its seed, and
 * `npm run simulate -- --seed N --trace` shows how it came about.
 *
 * SIMULATION_SECONDS is how long new seeds are tried, SIMULATION_SEED where they begin.
 */

import { createHash } from 'node:crypto'
import t, { type Test } from 'tap'

import { simulateBatch, type BatchOptions, type BatchResult } from './batch.ts'
import { simulate } from './run.ts'

const SECONDS = Number(process.env['SIMULATION_SECONDS'] ?? 5)
const FRESH = Number(process.env['SIMULATION_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
const ALWAYS = 100
/** Failures of which a batch tells. */
const MOST_FAILURES = 3
/** The seeds whose runs are made twice. */
const REPEATED = 5

async function batch(t: Test, options: Omit<BatchOptions, 'jobs'>): Promise<BatchResult> {
  const result = await simulateBatch({ ...options, jobs: 0, mostFailures: MOST_FAILURES })
  for (const { seed, reason, story } of result.failures)
    t.fail(`seed ${seed}: ${reason}`, { story: story.join('\n') })
  return result
}

void t.test('every promise is kept in the runs that are always made', async (t) => {
  const result = await batch(t, { firstSeed: 1, count: ALWAYS })
  t.equal(result.runs, ALWAYS, 'every run is made')
  t.ok(result.commits > 5 * ALWAYS, 'they are about something: checkpoints were committed')
  t.ok(result.acknowledged > 5 * ALWAYS, 'and writes were acknowledged')
  t.ok(result.verifies > ALWAYS / 2, 'and both sides were compared')
})

void t.test('every promise is kept in runs that nobody has seen before', async (t) => {
  const startedMs = performance.now()
  const result = await batch(t, {
    firstSeed: FRESH,
    count: 1_000_000,
    budgetMs: SECONDS * 1000,
  })
  const seconds = (performance.now() - startedMs) / 1000
  t.comment(
    `seeds ${FRESH} to ${FRESH + result.runs - 1}: ${(result.runs / seconds).toFixed(1)} a second`,
  )
  t.ok(result.runs > 0 || SECONDS === 0, 'there were some')
})

void t.test('the same seed goes the same way, watched or not', async (t) => {
  const storyOf = async (seed: number): Promise<string> => {
    const hash = createHash('sha256')
    await simulate(seed, (line) => hash.update(line)).catch(() => undefined)
    return hash.digest('hex')
  }
  const digestOf = async (seed: number, trace?: (line: string) => void): Promise<string> => {
    try {
      const { digest, events } = await simulate(seed, trace)
      return `${events} events, ${digest}`
    } catch (error) {
      return String(error)
    }
  }
  const digests = new Set<string>()
  for (let seed = FRESH; seed < FRESH + REPEATED; seed += 1) {
    t.equal(await storyOf(seed), await storyOf(seed), `seed ${seed} has one story`)
    const unwatched = await digestOf(seed)
    t.equal(unwatched, await digestOf(seed, () => undefined), `and goes on so when nobody looks`)
    digests.add(unwatched)
  }
  t.equal(digests.size, REPEATED, 'different seeds go different ways')
})
