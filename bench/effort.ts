/** How much is measured, and where: the same for every section of one run. */

export interface Effort {
  /** Seconds of each fio run. */
  readonly seconds: number
  /** Times that each subject is measured, one after the other. */
  readonly rounds: number
  /** Where images are made. */
  readonly directory: string
  /** Tells the person at the terminal what happens now. */
  progress(line: string): void
}
