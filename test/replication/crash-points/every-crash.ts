/** All crashes of a recording, and all crashes of the start that follows each of them. */

import { Fault } from '../../../core/fault.ts'
import { FATES } from './recorded-files.ts'
import type { RecordedStorage } from './recorded-storage.ts'

/** Ways in which each step of the recording is torn; the start after the first of them is crashed again. */
const TORN_WAYS = 10
/** Complaints after which no further crash is looked at. */
const ENOUGH = 5

export interface Crash<T> {
  /** Steps of the recording before it. */
  readonly step: number
  /** What the start after it came to, where this one is of that start. */
  readonly first: T | undefined
}

export interface Findings {
  readonly starts: number
  readonly wrong: readonly string[]
}

/**
 * @param start begins on what a crash has left, and waits until nothing more is done there; a Fault of it is wrong
 * @param from the first step that is of interest
 */
export async function crashEverywhere<T>(
  storage: RecordedStorage,
  start: (found: RecordedStorage, crash: Crash<T>, wrong: (what: string) => void) => Promise<T>,
  from = 0,
): Promise<Findings> {
  const wrong: string[] = []
  let starts = 0
  /** Each crash is torn in a way of its own. */
  let seed = 0
  const begin = async (
    found: RecordedStorage,
    name: string,
    crash: Crash<T>,
  ): Promise<T | undefined> => {
    starts += 1
    try {
      return await start(found, crash, (what) => wrong.push(`${name}: ${what}`))
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      wrong.push(`${name}: ${error.message}`)
      return undefined
    }
  }
  for (let step = from; step <= storage.steps; step += 1)
    for (const fate of FATES) {
      const name = `step ${step} of ${storage.steps}, ${fate}`
      const found = storage.afterCrash(step, fate, (seed += 1))
      const first = await begin(found, name, { step, first: undefined })
      for (let again = 0; again <= found.steps; again += 1)
        for (const second of FATES) {
          if (wrong.length >= ENOUGH) return { starts, wrong }
          const twice = `${name}; step ${again} of ${found.steps} of its start, ${second}`
          await begin(found.afterCrash(again, second, (seed += 1)), twice, { step, first })
        }
      for (let way = 1; fate === 'torn' && way < TORN_WAYS; way += 1)
        await begin(storage.afterCrash(step, fate, (seed += 1)), name, { step, first: undefined })
    }
  return { starts, wrong }
}
