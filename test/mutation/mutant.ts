/** A defect that is planted on purpose, and the test that has to notice it. */
export interface Mutant {
  /** The defect, as a sentence. */
  readonly defect: string
  /** Whose it was, or the invariant that it breaks (docs/architecture.md). */
  readonly of: string
  /** The source file. */
  readonly file: string
  /** Text that stands in the file exactly once, and what takes its place. */
  readonly from: string
  readonly to: string
  /** The test file that has to fail, and the test in it. */
  readonly test: string
  readonly caughtBy: string
}

/** The tests that catch more than one. */
export const SIMULATION = {
  test: 'test/simulation/simulation.test.ts',
  caughtBy: 'every promise is kept in the runs that are always made',
}

export const SECONDARY_CRASHES = {
  test: 'test/replication/crash-points/secondary-crashes.test.ts',
  caughtBy: 'a crash after any step, and after any step of the recovery, leaves one checkpoint',
}

export const PRIMARY_CRASHES = {
  test: 'test/replication/crash-points/primary-crashes.test.ts',
  caughtBy: 'a crash after any step, and after any step of the next start, loses no change',
}
