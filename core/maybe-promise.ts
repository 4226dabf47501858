/** Results that may be there at once: a request that can finish without waiting does, without a promise. */

export type MaybePromise<T> = T | Promise<T>

export function isPromise<T>(value: MaybePromise<T>): value is Promise<T> {
  return value instanceof Promise
}

/** Runs `next` with the value, at once when it is there, otherwise when it comes. Errors pass through. */
export function then<T, U>(
  value: MaybePromise<T>,
  next: (value: T) => MaybePromise<U>,
): MaybePromise<U> {
  return isPromise(value) ? value.then(next) : next(value)
}

/** Runs `start`, and `done` exactly once after it, whether it finished at once, later, or failed. */
export function ensure<T>(start: () => MaybePromise<T>, done: () => void): MaybePromise<T> {
  let value: MaybePromise<T>
  try {
    value = start()
  } catch (error) {
    done()
    throw error
  }
  if (isPromise(value)) return value.finally(done)
  done()
  return value
}

/**
 * Starts all `count` pieces of work side by side. It is done when every piece has ended, and has failed when one has:
 * a buffer that they share is not given back while one of them still runs.
 */
export function together(
  count: number,
  start: (index: number) => MaybePromise<void>,
): MaybePromise<void> {
  let running: Promise<void>[] | undefined
  let failure: { readonly reason: unknown } | undefined
  for (let index = 0; index < count && failure === undefined; index += 1) {
    try {
      const work = start(index)
      if (isPromise(work)) (running ??= []).push(work)
    } catch (reason) {
      failure = { reason }
    }
  }
  if (running !== undefined) return settled(running, failure)
  if (failure !== undefined) throw failure.reason
}

async function settled(
  running: readonly Promise<void>[],
  failure: { readonly reason: unknown } | undefined,
): Promise<void> {
  const results = await Promise.allSettled(running)
  if (failure !== undefined) throw failure.reason
  for (const result of results) if (result.status === 'rejected') throw result.reason
}
