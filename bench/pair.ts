/** A replicating pair, whoever makes it. */

export interface Pair {
  /** The primary's export. */
  readonly uri: string
  /** Ends the epoch; how long a paused VM would have waited. */
  checkpoint(): Promise<{ readonly milliseconds: number }>
  /** Whether a committed checkpoint survives a crash of the secondary. */
  durable(): Promise<boolean>
}
