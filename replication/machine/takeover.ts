/**
 * How a secondary comes to be the active copy: asked to by commands, or heir of a primary that left its role or is fenced.
 *
 * Invariants:
 *  - 10 There is one decision at a time, and it stands until it is known whether it was remembered.
 *  - 17 Unless by force, a mixture is not taken over. A part of a copy may have been under way to be committed when a
 *       command came: so what counts is what is here once every commit has ended.
 *  - Every command that asked is answered once, by decided() or forget().
 */

import { assert } from '../../core/assert.ts'
import { forked, type ReplicaState } from './replica-state.ts'

/** @returns why what a side remembers must not be served unless somebody forces it; nothing where it is a state of disks */
export function objectionTo({ generation, consistent }: ReplicaState): string | undefined {
  if (generation === null)
    return 'this side was never copied from a primary, so it holds nothing that is known; use force to serve it as it is'
  if (!consistent)
    return 'this copy is a mixture: a copy from the primary was broken off; let it finish, or use force to serve it as it is'
  return undefined
}

export class Takeover {
  /** Commands that wait for the commits under way, and then for the decision to be remembered. */
  #promotions: number[] = []
  /** What this side will be when that is remembered. */
  #decision: ReplicaState | undefined
  /** This side takes over without a command: by a handover, or because the primary is fenced. */
  #inherits = false
  #nextGeneration: string | undefined
  /** The link that was the current one when a forced promote came. */
  #deposing: number | undefined
  /** One of the commands takes whatever is here. */
  #forced = false

  /** Whether this side is to take over as soon as it can be decided. */
  get isWanted(): boolean {
    return this.#promotions.length > 0 || this.#inherits
  }

  get isUnderWay(): boolean {
    return this.isWanted || this.#decision !== undefined
  }

  /** @param link of the primary, which is told of its fate as soon as that is certain, if it is still there then */
  ask(request: number, force: boolean, generation: string, link: number | undefined): void {
    this.#promotions.push(request)
    this.#forced ||= force
    this.#nextGeneration ??= generation
    this.#deposing = link ?? this.#deposing
  }

  inherit(generation: string): void {
    this.#nextGeneration ??= generation
    this.#inherits = true
  }

  disinherit(): void {
    this.#inherits = false
  }

  /** @returns why nobody who waits for a decision may have this, if somebody does */
  objectionTo(from: ReplicaState): string | undefined {
    if (!this.isWanted || this.#decision !== undefined || this.#forced) return undefined
    return objectionTo(from)
  }

  /** @returns what is to be remembered now, if anything */
  decide(from: ReplicaState, term: number): ReplicaState | undefined {
    if (!this.isWanted || this.#decision !== undefined) return undefined
    const { checkpoint } = from
    assert(this.#nextGeneration !== undefined, 'a promote brings the name of the next line')
    this.#decision = {
      ...forked(from, this.#nextGeneration, checkpoint, 'promote'),
      role: 'active',
      term: term + 1,
      wrote: true,
      consistent: true,
      checkpoint,
      apart: from.apart,
      announced: null,
    }
    this.#nextGeneration = undefined
    return this.#decision
  }

  /** The decision is remembered. */
  decided(): {
    readonly state: ReplicaState
    readonly promotions: readonly number[]
    readonly deposing: number | undefined
  } {
    const state = this.#decision
    assert(state !== undefined, 'a decision is remembered once')
    return { state, ...this.forget() }
  }

  /** Nothing comes of it: neither command nor inheritance is left. */
  forget(): {
    readonly inherited: boolean
    readonly promotions: readonly number[]
    readonly deposing: number | undefined
  } {
    const was = {
      inherited: this.#inherits,
      promotions: this.#promotions,
      deposing: this.#deposing,
    }
    this.#promotions = []
    this.#decision = undefined
    this.#inherits = false
    this.#deposing = undefined
    this.#forced = false
    return was
  }
}
