/** Gives up a simulated run that will never end. */

/** Milliseconds between two looks at a run: whatever it waits for of its own comes within one turn of the event loop. */
const LOOK_MS = 5000

/**
 * A run that waits for what no event brings would let the event loop run empty, and its thread end without a word. The time that passes
 * says nothing, as a process may be stopped for long: but between two timers, of which the first one sets the second, there is a turn
 * of the loop, in which a run that goes on has an event.
 * @throws Error when nothing has happened in the run between two looks
 */
export async function alive<T>(
  run: Promise<T>,
  scheduler: { readonly count: number },
  lookMs = LOOK_MS,
): Promise<T> {
  let next: NodeJS.Timeout | undefined
  const stuck = new Promise<never>((_, reject) => {
    const lookAgain = (before: number): void => {
      next = setTimeout(() => {
        const { count } = scheduler
        if (count !== before) return lookAgain(count)
        reject(new Error('21: the run waits for what never comes'))
      }, lookMs)
    }
    lookAgain(-1)
  })
  try {
    return await Promise.race([run, stuck])
  } finally {
    clearTimeout(next)
  }
}
