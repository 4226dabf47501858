/**
 * Where a primary stands: its line of data, its term, and the numbers of its checkpoints. What a hello tells of these, and what
 * is remembered of them.
 *
 * Invariants:
 *  - `committed` never goes back, and never beyond `announced`.
 *  - A number that either side has used is never announced again, as far as it is known.
 */

import { assert } from '../../core/assert.ts'
import type { Ack } from '../group.ts'
import type { ApartDisks, HelloDisk } from './disk-sets.ts'
import { FEATURES, PROTOCOL, type Hello } from './handshake.ts'
import type { PrimarySettings } from './primary-io.ts'
import { forked, type Lineage, type ReplicaState } from './replica-state.ts'

export class PrimaryStanding {
  /** `active`: a primary by promote, and without a secondary since. */
  role: 'primary' | 'active'
  term: number
  /** Whose changes an operator gives up where the two sides have parted. */
  discard: Hello['discard'] = null
  /** Whether another replica may hold the present line. */
  shared: boolean
  /** What the secondary has to have of a write before it completes. */
  ack: Ack
  readonly #settings: PrimarySettings
  #lineage: Lineage
  #committed: number
  #announced: number
  /** Whether `announced` may be too low. */
  #forgot: boolean

  constructor(settings: PrimarySettings) {
    const { remembered } = settings
    this.#settings = settings
    this.role = remembered.role === 'active' ? 'active' : 'primary'
    this.term = remembered.term
    this.shared = settings.shared
    this.ack = settings.ack
    this.#lineage = { generation: remembered.generation, history: remembered.history }
    this.#committed = remembered.checkpoint
    this.#announced = remembered.announced ?? remembered.checkpoint
    this.#forgot = remembered.announced === null
  }

  get generation(): string | null {
    return this.#lineage.generation
  }

  get committed(): number {
    return this.#committed
  }

  get announced(): number {
    return this.#announced
  }

  /** A new line begins, which nobody else holds. */
  fork(generation: string): void {
    this.#lineage = forked(this.#lineage, generation, this.#committed, 'write')
    this.shared = false
  }

  /** The number of the next checkpoint. Who commits it holds the present line, whether that is heard of or not. */
  announce(): number {
    this.shared = true
    this.#announced += 1
    return this.#announced
  }

  /** The other side knows of numbers up to this one. */
  learn(announced: number): void {
    this.#announced = Math.max(this.#announced, announced)
    this.#forgot = false
  }

  /** @returns whether anything was committed by that */
  commit(checkpoint: number): boolean {
    assert(
      checkpoint >= this.#committed && checkpoint <= this.#announced,
      'commits move forward to announced numbers',
    )
    const moved = checkpoint > this.#committed
    this.#committed = checkpoint
    return moved
  }

  hello(disks: readonly HelloDisk[]): Hello {
    const { group, mode, replica, identical } = this.#settings
    return {
      ...this.#lineage,
      protocol: PROTOCOL,
      ...{ group, mode, replica, disks, identical },
      role: 'primary',
      checkpoint: this.#committed,
      announced: this.#forgot ? null : this.#announced,
      consistent: true,
      wrote: true,
      term: this.term,
      capacity: 0,
      durable: false,
      discard: this.discard,
      ack: this.ack,
      features: FEATURES,
    }
  }

  /** What has to be remembered. `ending`: nothing is announced any more, so that the number is exact. */
  state(ending: boolean, apart: ApartDisks): ReplicaState {
    return {
      ...this.#lineage,
      apart,
      role: this.role,
      term: this.term,
      wrote: true,
      consistent: true,
      checkpoint: this.#committed,
      announced: ending && !this.#forgot ? this.#announced : null,
    }
  }
}
