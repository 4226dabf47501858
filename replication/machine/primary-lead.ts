/**
 * Whether a primary may lead: its guest's writes are acknowledged until the other side turns out to be the active one.
 *
 * Invariants:
 *  - 13 A side that was deposed acknowledges no write any more, for as long as it is this machine.
 *  - It gives its role up by itself only if neither a guest has used it nor a secondary has followed it: else an operator does.
 *  - The shell is told to step down once for each time that the other side says so.
 */

import type { PrimaryOutbox } from './primary-outbox.ts'

export class PrimaryLead {
  readonly #group: string
  readonly #out: PrimaryOutbox
  #deposed = false
  #used = false
  /** Why the role is to be given up, until the shell has been told. */
  #stepsDown: string | undefined

  constructor(group: string, out: PrimaryOutbox) {
    this.#group = group
    this.#out = out
  }

  get isDeposed(): boolean {
    return this.#deposed
  }

  /** Whether a guest has used this side, or a secondary has followed it, since this machine was made. */
  get isUsed(): boolean {
    return this.#used
  }

  /** Why the guest may not write, or undefined when it may. */
  get writeObjection(): string | undefined {
    return this.#deposed ? 'this copy was deposed: the other side is the active one' : undefined
  }

  /** A guest uses this side, or a secondary follows it. Hot path. */
  use(): void {
    this.#used = true
  }

  /** The other side leads. @returns whether the pair can be protected again without an operator; undefined: as before */
  depose(reason: string): boolean | undefined {
    if (!this.#used) this.#stepsDown = reason
    if (this.#deposed) return this.#used ? undefined : true
    this.#deposed = true
    const error = `deposed: ${reason}; this copy acknowledges no more writes`
    this.#out.event({ event: 'REPLICATION_ERROR', data: { group: this.#group, error } })
    return !this.#used
  }

  /** Asks the shell to give the role up, if that is due: last in a step, for it is the next one of this machine. */
  stepDown(): void {
    if (this.#stepsDown !== undefined) this.#out.add({ type: 'step-down', reason: this.#stepsDown })
    this.#stepsDown = undefined
  }
}
