/**
 * What each checkpoint may hold, for all disks of a group. Kept are the last confirmed one and what came after it: a
 * recovered secondary is at one of these, or has broken its promise.
 *
 * Invariant: the bounds of an attempt begin with what was acknowledged before it was asked for, and end with what had been
 * issued when its answer came (invariant 5 of the replication model, the epoch cut).
 */

import type { BlockHistory, Bounds } from './block-history.ts'

/** By disk. */
export type GroupBounds = readonly Bounds[]

export class CheckpointLog {
  readonly #histories: readonly BlockHistory[]
  #confirmed: { readonly number: number; readonly bounds: GroupBounds }
  /** From the first attempt that was not confirmed to the last one: any of them may have been committed. */
  #unconfirmed: GroupBounds | undefined
  #began: readonly Uint32Array[] | undefined

  /** @param number the checkpoint that the group is at, with every disk as its history says */
  constructor(histories: readonly BlockHistory[], number: number) {
    this.#histories = histories
    this.#confirmed = { number, bounds: this.#now() }
  }

  /** The last checkpoint that was reported as committed. */
  get confirmed(): number {
    return this.#confirmed.number
  }

  /** A checkpoint is about to be asked for. */
  begin(): void {
    this.#began = this.#histories.map((history) => history.acknowledged())
  }

  /** It was reported as committed. @returns what is wrong with its number */
  confirm(number: number): string | undefined {
    const before = this.#confirmed.number
    this.#confirmed = { number, bounds: this.#attempt() }
    this.#unconfirmed = undefined
    return number > before
      ? undefined
      : `checkpoint ${number} was reported after checkpoint ${before}`
  }

  /** It is not known to be committed. */
  fail(): void {
    const attempt = this.#attempt()
    this.#unconfirmed = attempt.map(({ acknowledged, issued }, disk) => ({
      acknowledged: this.#unconfirmed?.[disk]?.acknowledged ?? acknowledged,
      issued,
    }))
  }

  /** What a group that says it is at checkpoint `number` may hold; a sentence when it may not be there. */
  boundsOf(number: number): GroupBounds | string {
    const { number: confirmed, bounds } = this.#confirmed
    if (number === confirmed) return bounds
    if (number < confirmed)
      return `it is at checkpoint ${number}, though ${confirmed} was reported as committed`
    return (
      this.#unconfirmed ??
      `it is at checkpoint ${number}, but none was asked for after ${confirmed}`
    )
  }

  #attempt(): GroupBounds {
    const began = this.#began ?? []
    this.#began = undefined
    return this.#histories.map((history, disk) => ({
      acknowledged: began[disk] ?? history.acknowledged(),
      issued: history.issued(),
    }))
  }

  #now(): GroupBounds {
    return this.#histories.map((history) => {
      const acknowledged = history.acknowledged()
      return { acknowledged, issued: acknowledged }
    })
  }
}
