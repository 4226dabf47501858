/**
 * Goes through all orders of steps from a pair of replicas, breadth first. Pairs that differ in names only are one, so the
 * two replicas may change their names within a story.
 */

import type { Pair } from './pair-model.ts'

/** Something that can happen to a pair; it throws when the pair is not as it should be then. */
export type Step = readonly [name: string, perform: (pair: Pair) => void]

export interface Found {
  /** Pairs that differ. */
  readonly pairs: number
  /** What went wrong, each with the shortest way there. */
  readonly failures: readonly string[]
}

interface Arrival {
  readonly from: string
  readonly by: string
}

export function search(
  begin: Pair,
  depth: number,
  stepsFor: (pair: Pair) => readonly Step[],
): Found {
  const start = keyOf(begin)
  const seen = new Map<string, Arrival | null>([[start, null]])
  const failures = new Map<string, string>()
  let front = [start]
  for (let level = 0; level < depth; level += 1) {
    const next: string[] = []
    for (const from of front)
      for (const [by, perform] of stepsFor(pairOf(from))) {
        const pair = pairOf(from)
        try {
          perform(pair)
        } catch (error) {
          const { message } = error as Error
          const kind = message.replace(/\d+/g, '#')
          if (!failures.has(kind)) failures.set(kind, `${message}: ${storyOf(seen, { from, by })}`)
          continue
        }
        const reached = keyOf(pair)
        if (seen.has(reached)) continue
        seen.set(reached, { from, by })
        next.push(reached)
      }
    front = next
  }
  return { pairs: seen.size, failures: [...failures.values()] }
}

function storyOf(seen: ReadonlyMap<string, Arrival | null>, last: Arrival): string {
  const story: string[] = []
  for (let at: Arrival | null = last; at !== null; at = seen.get(at.from) ?? null)
    story.unshift(at.by)
  return story.join('; ')
}

/** A key is the pair itself, as text. */
const pairOf = (key: string): Pair => JSON.parse(key) as Pair

function keyOf(pair: Pair): string {
  const [one, other] = [renamed(pair), renamed(swapped(pair))]
  return one < other ? one : other
}

/** The same with the two replicas in each other's place. */
function swapped(pair: Pair): Pair {
  const { replicas, link } = pair
  const [first, second] = replicas
  if (link === null) return { ...pair, replicas: [second, first] }
  const up = link.up.toReversed()
  return { ...pair, replicas: [second, first], link: { ...link, source: 1 - link.source, up } }
}

/** The pair as text, with generations and writes named in the order in which they occur in it. */
function renamed(pair: Pair): string {
  const names = new Map<string, string>()
  const text = JSON.stringify({ ...pair, names: 0 }).replace(
    /"([gv])\d+"/g,
    (name, kind: string) => {
      const known = names.get(name) ?? `"${kind}${names.size}"`
      names.set(name, known)
      return known
    },
  )
  return text.replace('"names":0', `"names":${names.size}`)
}
