/**
 * The ranges that a verify has found to differ: exact in bytes, and listed as far as a report can be read by anybody.
 *
 * Invariant: memory is bounded: at most MOST_LISTED ranges, neighbours joined; of the rest only the number of pieces is known.
 */

import type { DifferentRange } from '../group.ts'

export const MOST_LISTED = 100

interface Listed {
  readonly disk: number
  readonly at: number
  readonly length: number
}

export class Differences {
  /** In the order of the disks. */
  #listed: Listed[] = []
  #bytes = 0
  #omitted = 0

  get bytes(): number {
    return this.#bytes
  }

  /** Pieces that are not in the list. */
  get omitted(): number {
    return this.#omitted
  }

  /** @param names of the disks, by number */
  ranges(names: readonly string[]): DifferentRange[] {
    return this.#listed.map(({ disk, at, length }) => ({ disk: names[disk] ?? '', at, length }))
  }

  /** Ranges never overlap, and come in about their order. */
  add(disk: number, at: number, length: number): void {
    this.#bytes += length
    const place = this.#listed.findIndex((other) => isBefore({ disk, at, length }, other))
    const next = place === -1 ? this.#listed.length : place
    const [left, right] = [this.#listed[next - 1], this.#listed[next]]
    const joinsLeft = left?.disk === disk && left.at + left.length === at
    const joinsRight = right?.disk === disk && at + length === right.at
    if (!joinsLeft && !joinsRight && this.#listed.length === MOST_LISTED) {
      this.#omitted += 1
      return
    }
    const from = joinsLeft ? left.at : at
    const end = joinsRight ? right.at + right.length : at + length
    const first = joinsLeft ? next - 1 : next
    const replaced = (joinsLeft ? 1 : 0) + (joinsRight ? 1 : 0)
    this.#listed.splice(first, replaced, { disk, at: from, length: end - from })
  }
}

function isBefore(a: Listed, b: Listed): boolean {
  return a.disk === b.disk ? a.at < b.at : a.disk < b.disk
}
