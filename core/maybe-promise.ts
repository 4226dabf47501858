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
