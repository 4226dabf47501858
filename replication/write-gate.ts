/**
 * What the writes of a primary's guests pass before they begin, and before they are acknowledged.
 *
 * Invariants:
 *  - 13 A new line of data is remembered durably before the write that begins it.
 *  - 14 While the machine is frozen no write begins, and none is acknowledged; each goes on once when it is not any more.
 */

import type { Fault } from '../core/fault.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'
import type { PrimaryMachine } from './machine/primary.ts'
import type { ReplicaState } from './machine/replica-state.ts'

export interface GateContext {
  /** Has the machine begin a new line. */
  readonly fork: () => void
  /** Remembers the state durably. @throws Fault */
  readonly persist: (state: ReplicaState) => MaybePromise<void>
}

export class WriteGate {
  readonly #machine: PrimaryMachine
  readonly #context: GateContext
  #forking: Promise<void> | undefined
  /** The present line is not known to be remembered. */
  #unsaved = false
  #waiting: { readonly pass: () => void; readonly refuse: (error: Fault) => void }[] = []
  #held = false
  #ended: Fault | undefined

  constructor(machine: PrimaryMachine, context: GateContext) {
    this.#machine = machine
    this.#context = context
  }

  /** Why nothing passes any more. */
  get ended(): Fault | undefined {
    return this.#ended
  }

  /** Whether writes are made to wait. */
  get held(): boolean {
    return this.#held
  }

  /** Resolves when the present line, which is not remembered yet, is. */
  get remembering(): Promise<void> | undefined {
    return this.#unsaved ? this.#remembered() : undefined
  }

  /** Resolves when a write may begin; at once while nothing has to be done before. @throws Fault when none may */
  ready(): MaybePromise<void> {
    if (this.#ended !== undefined) throw this.#ended
    if (this.#machine.frozen || this.#held) return this.#wait()
    return this.#machine.mustFork || this.#unsaved ? this.#remembered() : undefined
  }

  /** Resolves when a write that has ended may be acknowledged. @throws Fault when it never may */
  thawed(): MaybePromise<void> {
    if (!this.#machine.frozen) return undefined
    if (this.#ended !== undefined) throw this.#ended
    return this.#wait()
  }

  /** Lets writes wait. */
  hold(): void {
    this.#held = true
  }

  unhold(): void {
    this.#held = false
    this.open()
  }

  /** Lets pass what waits, where nothing holds it up any more. */
  open(): void {
    if (this.#waiting.length === 0 || this.#machine.frozen || this.#held) return
    for (const { pass } of this.#waiting.splice(0)) pass()
  }

  /** No write begins any more. */
  refuse(reason: Fault): void {
    this.#ended ??= reason
  }

  /** What waits is refused, too. */
  end(reason: Fault): void {
    this.refuse(reason)
    for (const { refuse } of this.#waiting.splice(0)) refuse(reason)
  }

  #wait(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ pass: resolve, refuse: reject })
    })
  }

  #remembered(): Promise<void> | undefined {
    if (!this.#machine.mustFork && !this.#unsaved) return this.#forking
    this.#forking ??= this.#fork().finally(() => {
      this.#forking = undefined
    })
    return this.#forking
  }

  async #fork(): Promise<void> {
    // A connection that is being made waits for this, or is given up by the machine.
    if (this.#machine.mustFork) this.#context.fork()
    this.#unsaved = true
    await this.#context.persist(this.#machine.state(false))
    this.#unsaved = false
  }
}
