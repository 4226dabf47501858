/** A replicating pair, whoever makes it. */

export interface Pair {
  /** The primary's export. */
  readonly uri: string
  /** Ends the epoch; how long a paused VM would have waited, and how much was dirty where the pair says so. */
  checkpoint(): Promise<{ readonly milliseconds: number; readonly bytes?: number }>
}
