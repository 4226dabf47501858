/** A range of a disk as stretches that may differ from the last committed checkpoint, and stretches that do not. Pure. */

import type { MapExtent } from '../../core/block-device.ts'

/** The first dirty run that ends behind `from`, as DirtyMap.nextDirty has it. */
type NextDirty = (from: number, limit: number) => { at: number; length: number } | undefined

/** More are left for the next question: the list must stay small. */
const MOST_EXTENTS = 1024

/** Value 1 where dirty, 0 where not. Tiles the range from `at`, or the beginning of it. */
export function dirtyExtents(at: number, length: number, nextDirty: NextDirty): MapExtent[] {
  const extents: MapExtent[] = []
  const end = at + length
  const add = (from: number, to: number, value: number): void => {
    const last = extents.at(-1)
    if (from === to) return
    if (last?.value === value) extents[extents.length - 1] = { ...last, length: to - last.at }
    else extents.push({ at: from, length: to - from, value })
  }
  let position = at
  while (position < end && extents.length < MOST_EXTENTS) {
    const run = nextDirty(position, end - position)
    // A run begins and ends with its block, which the range may cut.
    const start = run === undefined ? end : Math.min(Math.max(run.at, position), end)
    add(position, start, 0)
    position = run === undefined ? end : Math.min(run.at + run.length, end)
    add(start, position, 1)
  }
  return extents
}
