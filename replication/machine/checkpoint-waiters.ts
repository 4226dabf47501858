/**
 * Commands on a secondary that wait for the next checkpoint of their primary.
 *
 * Invariant: each checkpoint is told to one command at most that came after it, and to all that were waiting for it.
 */

import type { CheckpointResult } from '../group.ts'

export class CheckpointWaiters {
  #waiting: { readonly request: number; readonly deadlineMs: number }[] = []
  #last: CheckpointResult | undefined
  /** The last checkpoint that a command was told of. */
  #told = 0

  /** A checkpoint that no command was told of yet, which the caller has to tell now. */
  takeUntold(): CheckpointResult | undefined {
    if (this.#last === undefined || this.#last.checkpoint <= this.#told) return undefined
    this.#told = this.#last.checkpoint
    return this.#last
  }

  wait(request: number, deadlineMs: number): void {
    this.#waiting.push({ request, deadlineMs })
  }

  /** @returns the requests to answer with it */
  committed(result: CheckpointResult): readonly number[] {
    this.#last = result
    const waiting = this.takeAll()
    if (waiting.length > 0) this.#told = result.checkpoint
    return waiting
  }

  takeOverdue(nowMs: number): readonly number[] {
    const overdue = this.#waiting.filter(({ deadlineMs }) => deadlineMs <= nowMs)
    this.#waiting = this.#waiting.filter(({ deadlineMs }) => deadlineMs > nowMs)
    return overdue.map(({ request }) => request)
  }

  takeAll(): readonly number[] {
    const waiting = this.#waiting
    this.#waiting = []
    return waiting.map(({ request }) => request)
  }
}
