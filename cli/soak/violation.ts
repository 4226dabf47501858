/** A promise of the replication that did not hold: what a soak looks for, as opposed to a fault that keeps it from looking. */
export class Violation extends Error {
  override readonly name = 'Violation'
}

/** How long a step that needs nobody's help may take; far more than any step needs. */
const PATIENCE_MS = 60_000

/** @throws Violation when `work` does not end in time */
export async function patiently<T>(work: Promise<T>, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    const seconds = PATIENCE_MS / 1000
    timer = setTimeout(
      () => reject(new Violation(`${what} did not come within ${seconds} s`)),
      PATIENCE_MS,
    )
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}
