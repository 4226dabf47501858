/** How far long work on a disk is, and when it may be done. */

export interface Progress {
  readonly doneBytes: number
  readonly totalBytes: number
  readonly bytesPerSecond: number
  /** Null while it cannot be estimated. */
  readonly secondsLeft: number | null
}

/** @param done bytes; a guest may add to the work meanwhile, but more than all is never done */
export function progressOf(done: number, totalBytes: number, elapsedMs: number): Progress {
  const bytesPerSecond = elapsedMs > 0 ? Math.round((1000 * done) / elapsedMs) : 0
  const doneBytes = Math.min(done, totalBytes)
  const secondsLeft =
    bytesPerSecond === 0 ? null : Math.ceil((totalBytes - doneBytes) / bytesPerSecond)
  return { doneBytes, totalBytes, bytesPerSecond, secondsLeft }
}
