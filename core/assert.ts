/** Assertions: they state what our own code guarantees, and stop it where that is false. Never for a peer's or user's fault. */

/** @throws AssertionFailure when `condition` is false: a bug in colotap. */
export function assert(condition: boolean, claim: string): asserts condition {
  if (!condition) throw new AssertionFailure(claim)
}

/** For the default branch of a switch that the types say is complete. */
export function unreachable(value: never, claim: string): never {
  throw new AssertionFailure(`${claim}: ${JSON.stringify(value)}`)
}

/** A bug in colotap. Reaching the top of a process, it ends the process. */
export class AssertionFailure extends Error {
  override readonly name = 'AssertionFailure'
}
