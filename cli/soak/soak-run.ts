/** The course of a soak: when it ends, what is counted, and what ended it too early. */

import type { Session } from './session.ts'
import { Tally } from './tally.ts'
import { Violation } from './violation.ts'

export interface RunOptions {
  readonly rounds: number | undefined
  readonly seconds: number | undefined
  /** Is told of each round that ended well. */
  readonly onRound: (kind: string) => void
}

export class SoakRun {
  readonly tally = new Tally()
  /** The folder with the images, where they are kept. */
  evidence: string | undefined
  /** What the machine, and not the replication, has failed at. */
  #failure: unknown
  #interrupted = false
  readonly #options: RunOptions
  readonly #startedMs = performance.now()
  #onInterrupt: () => Promise<void> = () => Promise.resolve()

  constructor(options: RunOptions) {
    this.#options = options
  }

  get elapsedMs(): number {
    return performance.now() - this.#startedMs
  }

  /** Whether there is to be another round. */
  get goesOn(): boolean {
    const { rounds, seconds } = this.#options
    if (this.#interrupted) return false
    if (rounds !== undefined) return this.tally.finishedRounds < rounds
    return this.elapsedMs < (seconds ?? 0) * 1000
  }

  /** Whether all that was wanted was done. */
  get finished(): boolean {
    return !this.#interrupted && this.#failure === undefined && this.tally.violations.length === 0
  }

  get interrupted(): boolean {
    return this.#interrupted
  }

  get failure(): unknown {
    return this.#failure
  }

  onInterrupt(end: () => Promise<void>): void {
    this.#onInterrupt = end
  }

  /** Ends it as soon as possible. */
  async interrupt(): Promise<void> {
    this.#interrupted = true
    await this.#onInterrupt()
  }

  countRound(kind: string, session: Session): void {
    this.tally.countRound(kind)
    session.countGuests()
    this.#options.onRound(kind)
  }

  /** Sorts what has ended the soak: what an interruption breaks is nobody's fault. */
  fail(error: unknown): void {
    if (this.#interrupted) return
    if (error instanceof Violation) this.tally.violations.push(error.message)
    else this.#failure = error
  }
}
