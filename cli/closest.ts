/** The word that somebody probably meant, for error messages. */

/** The candidate nearest to `given`, if it is near enough to be a slip of the pen. */
export function closest(given: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined
  let least = Math.ceil(given.length / 3) + 1
  for (const candidate of candidates) {
    const distance = candidate.startsWith(given) && given.length > 1 ? 1 : edits(given, candidate)
    if (distance < least) {
      best = candidate
      least = distance
    }
  }
  return best
}

/** Levenshtein's distance: the insertions, deletions and replacements between two words. */
function edits(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index)
  for (let i = 1; i <= from.length; i += 1) {
    const next = [i]
    for (let j = 1; j <= to.length; j += 1) {
      const replaced = (row[j - 1] ?? 0) + (from[i - 1] === to[j - 1] ? 0 : 1)
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[to.length] ?? 0
}
