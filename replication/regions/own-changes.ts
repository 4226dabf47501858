/** What a secondary changed by itself, as a primary or under its own guests, since the checkpoint that it is at. */

import { asFault } from '../../core/fault.ts'
import type { Troubles } from '../troubles.ts'
import type { ChangedRange, RegionMap } from './region-map.ts'

export class OwnChanges {
  readonly #regions: readonly RegionMap[]
  readonly #troubles: Troubles
  /** By disk, where it is known better than by the maps on disk. */
  #known: readonly (readonly ChangedRange[])[] | undefined

  /** @param regions the maps on disk, by disk; may be filled later */
  constructor(regions: readonly RegionMap[], troubles: Troubles) {
    this.#regions = regions
    this.#troubles = troubles
  }

  /** A primary of before knows what it changed; undefined: only the maps do. */
  know(changed: readonly (readonly ChangedRange[])[] | undefined): void {
    this.#known = changed
  }

  of(disk: number): readonly ChangedRange[] {
    return this.#known?.[disk] ?? this.#regions[disk]?.ranges() ?? []
  }

  /** Every disk is what a primary sent, up to these bytes, by disk: what lies behind them is in no checkpoint of it. */
  forget(ends: readonly number[]): void {
    this.#known = undefined
    const cleared = this.#regions.map((regions, disk) => regions.clear(ends[disk] ?? 0))
    void Promise.all(cleared).then(
      () => this.#troubles.over('regions'),
      (error: unknown) => {
        // They say too much then, which costs the next copy time and nothing else.
        const { message } = asFault(error, 'IO', 'cannot write the map of changed regions')
        this.#troubles.report('regions', message)
      },
    )
  }
}
