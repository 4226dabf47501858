/**
 * Lets requests through to a device, counts those that are under way, and holds later ones back while something is done
 * that none may run beside.
 *
 * Invariants:
 *  - While the gate is shut nothing new passes; what waits goes on in the order in which it came when the gate opens.
 *  - drained() resolves when no request is under way that passed before.
 *  - A request that is answered at once costs no allocation here.
 */

import { isPromise, type MaybePromise } from '../core/maybe-promise.ts'

export class RequestGate {
  #shut: Promise<void> | undefined
  #letGo: (() => void) | undefined
  #underWay = 0
  /** Told when the last request under way ends. */
  #idle: (() => void)[] = []

  /** While the gate is shut: resolves when it opens. Look again then, somebody else may have shut it once more. */
  get shut(): Promise<void> | undefined {
    return this.#shut
  }

  /** Requests that passed and have not ended. */
  get underWay(): number {
    return this.#underWay
  }

  /** Holds back what comes from now on. Shutting a shut gate changes nothing. */
  close(): void {
    this.#shut ??= new Promise((resolve) => (this.#letGo = resolve))
  }

  open(): void {
    this.#shut = undefined
    this.#letGo?.()
    this.#letGo = undefined
  }

  /** Runs `work` alone: when nothing is under way, and while nothing passes. Several take turns. */
  async alone(work: () => Promise<void>): Promise<void> {
    while (this.#shut !== undefined) await this.#shut
    this.close()
    try {
      await this.drained()
      await work()
    } finally {
      this.open()
    }
  }

  /** Resolves when nothing is under way, and the gate is open. */
  async quiet(): Promise<void> {
    while (this.#shut !== undefined) await this.#shut
    await this.drained()
  }

  async drained(): Promise<void> {
    while (this.#underWay > 0) await new Promise<void>((resolve) => this.#idle.push(resolve))
  }

  /** Counts a request that passed, if it takes its time. */
  track<T>(result: MaybePromise<T>): MaybePromise<T> {
    if (!isPromise(result)) return result
    this.#underWay += 1
    return result.then<T>(this.#leave, this.#leaveFailed)
  }

  readonly #leave = <T>(value: T): T => {
    this.#underWay -= 1
    if (this.#underWay === 0 && this.#idle.length > 0) {
      const told = this.#idle
      this.#idle = []
      for (const tell of told) tell()
    }
    return value
  }

  readonly #leaveFailed = (error: unknown): never => {
    this.#leave(undefined)
    throw error
  }
}
