/** Time as an input: what code that must wait is given instead of the process's own timers. */

export interface Timers {
  /**
   * Runs `run` once, `ms` milliseconds from now and never before this call returned. 0 means as soon as the
   * events that are ready now had their turn (setImmediate), so that a long piece of work can be cut up.
   * @returns cancels it; does nothing once it has run
   */
  after(ms: number, run: () => void): () => void
}
