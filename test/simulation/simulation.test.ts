/**
 * Both sides of a group, the program's own code, through thousands of virtual accidents (the other files of this
 * folder). One batch of seeds is always the same, one is new each time; a failure names its seed, and
 * `npm run simulate -- --seed N --count 1` shows how it came about.
 *
 * SIMULATION_RUNS sets the size of both batches, SIMULATION_SEED where the new one begins.
 */

import t from 'tap'

import { simulate, type Summary } from './run.ts'

const RUNS = Number(process.env['SIMULATION_RUNS'] ?? 20)
const FRESH = Number(process.env['SIMULATION_SEED'] ?? Math.floor(Math.random() * 2 ** 31))

/** @returns the summaries of the runs that went well */
async function simulateAll(
  fail: (message: string) => void,
  firstSeed: number,
  count: number,
): Promise<readonly Summary[]> {
  const summaries: Summary[] = []
  for (let seed = firstSeed; seed < firstSeed + count; seed += 1) {
    try {
      summaries.push(await simulate(seed))
    } catch (error) {
      const reason = error instanceof Error ? (error.stack ?? error.message) : String(error)
      fail(`seed ${seed}: ${reason}`)
    }
  }
  return summaries
}

void t.test('every promise is kept in the runs that are always made', async (t) => {
  const summaries = await simulateAll((message) => t.fail(message), 1, RUNS)
  t.equal(summaries.length, RUNS, 'every run is right')
  const sum = (of: (summary: Summary) => number): number =>
    summaries.reduce((total, summary) => total + of(summary), 0)
  t.ok(
    sum(({ commits }) => commits) > 10 * RUNS,
    'they are about something: checkpoints were committed',
  )
  t.ok(sum(({ acknowledged }) => acknowledged) > 10 * RUNS, 'and writes were acknowledged')
})

void t.test('every promise is kept in runs that nobody has seen before', async (t) => {
  t.comment(`first seed ${FRESH}`)
  const summaries = await simulateAll((message) => t.fail(message), FRESH, RUNS)
  t.equal(summaries.length, RUNS, `every run is right from seed ${FRESH} on`)
})

void t.test('the same seed goes the same way', async (t) => {
  const runOf = async (): Promise<string[]> => {
    const lines: string[] = []
    await simulate(FRESH, (line) => lines.push(line)).catch(() => undefined)
    return lines
  }
  const once = await runOf()
  const again = await runOf()
  const difference = once.findIndex((line, index) => line !== again[index])
  t.equal(difference, -1, `seed ${FRESH} goes the same way twice`)
  t.equal(again.length, once.length)
  t.ok(once.length > 0, 'and there was something to compare')
})
