/**
 * Many simulated runs, on several threads that take the next seed from a common counter: no thread waits for another,
 * and a seed goes the same way on each.
 */

import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'

import { simulate } from './run.ts'

export interface Failure {
  readonly seed: number
  readonly reason: string
  /** The end of its story. */
  readonly story: readonly string[]
}

export interface BatchResult {
  /** Runs that were made: `count`, or fewer where the time was over. */
  readonly runs: number
  readonly failures: readonly Failure[]
  readonly commits: number
  readonly events: number
  readonly acknowledged: number
  /** Comparisons of all that both sides hold. */
  readonly verifies: number
}

export interface BatchOptions {
  readonly firstSeed: number
  readonly count: number
  /** Threads. */
  readonly jobs: number
  /** No run begins later than so many milliseconds after the start. */
  readonly budgetMs?: number
  /** Failures after which a thread goes on no more; none is too many unless told. */
  readonly mostFailures?: number
  /** Told of each failure as it comes. */
  readonly failed?: (failure: Failure) => void
  /** Called after some of the runs. */
  readonly progress?: (runs: number, failures: number) => void
}

/** The counts of a result, while they are counted. */
type Counts = { -readonly [Key in keyof BatchResult]: BatchResult[Key] } & { failures: Failure[] }

/** Lines of a story that a failure shows. */
const LAST_LINES = 60
/** Lines of the stack of what such a run ends with. */
const STACK_LINES = 20
/** Failures whose stories are kept; of the others there is the seed, and the reason. */
const MOST_STORIES = 3
/** Runs that a thread makes between two reports. */
const REPORT = 50

/** What one thread is told. */
interface Orders {
  readonly firstSeed: number
  readonly count: number
  readonly budgetMs: number
  readonly mostFailures: number
  /** How many of the seeds somebody has taken: one number. */
  readonly taken: SharedArrayBuffer
}

/** On `jobs` threads; with none, on the caller's. */
export async function simulateBatch(options: BatchOptions): Promise<BatchResult> {
  const { jobs, firstSeed, count, budgetMs = Infinity, mostFailures = Infinity } = options
  const taken = new SharedArrayBuffer(4)
  const orders: Orders = { firstSeed, count, budgetMs, mostFailures, taken }
  const total = nothing()
  const take = (part: BatchResult): void => {
    add(total, part)
    for (const failure of part.failures) options.failed?.(failure)
    options.progress?.(total.runs, total.failures.length)
  }
  if (jobs === 0) await runOrders(orders, take)
  else await Promise.all(Array.from({ length: jobs }, () => work(orders, take)))
  total.failures.sort((one, other) => one.seed - other.seed)
  return total
}

function work(orders: Orders, take: (part: BatchResult) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: orders })
    worker.on('message', take)
    worker.on('error', reject)
    worker.on('exit', (code) => {
      if (code === 0) resolve()
      else reject(new Error(`a thread of simulations ended with ${code}, in none of its runs`))
    })
  })
}

async function runOrders(orders: Orders, report: (part: BatchResult) => void): Promise<void> {
  const { firstSeed, count, budgetMs, mostFailures } = orders
  const taken = new Int32Array(orders.taken)
  const startedMs = performance.now()
  let part = nothing()
  let failures = 0
  for (;;) {
    if (performance.now() - startedMs > budgetMs || failures >= mostFailures) break
    const index = Atomics.add(taken, 0, 1)
    if (index >= count) break
    const seed = firstSeed + index
    part.runs += 1
    try {
      const { commits, events, acknowledged, verifies } = await simulate(seed)
      add(part, { runs: 0, failures: [], commits, events, acknowledged, verifies })
    } catch (error) {
      failures += 1
      part.failures.push(await failureOf(seed, error, failures <= MOST_STORIES))
    }
    if (part.runs < REPORT && part.failures.length === 0) continue
    report(part)
    part = nothing()
  }
  report(part)
}

function nothing(): Counts {
  return { runs: 0, failures: [], commits: 0, events: 0, acknowledged: 0, verifies: 0 }
}

function add(total: Counts, part: BatchResult): void {
  total.runs += part.runs
  total.commits += part.commits
  total.events += part.events
  total.acknowledged += part.acknowledged
  total.verifies += part.verifies
  total.failures.push(...part.failures)
}

/** The same run once more, for its story, and for where it went wrong. */
async function failureOf(seed: number, error: unknown, told: boolean): Promise<Failure> {
  const lines: string[] = []
  let again = error
  const limit = Error.stackTraceLimit
  Error.stackTraceLimit = STACK_LINES
  if (told)
    await simulate(seed, (line) => lines.push(line)).catch((found: unknown) => (again = found))
  Error.stackTraceLimit = limit
  const reason = again instanceof Error ? (again.stack ?? again.message) : String(again)
  return { seed, reason, story: lines.slice(-LAST_LINES) }
}

if (!isMainThread && parentPort !== null) {
  const port = parentPort
  // Most errors of a run belong to it, and nobody looks at where they were made.
  Error.stackTraceLimit = 0
  await runOrders(workerData as Orders, (part) => port.postMessage(part))
}
