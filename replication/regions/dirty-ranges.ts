/** What a primary has changed, and its secondary may not have. */

import type { PrimaryMachine } from '../machine/primary.ts'
import type { ChangedRange } from './region-map.ts'

/** @returns what differs, or may differ, from the last checkpoint on this disk */
export function dirtyRanges(machine: PrimaryMachine, disk: number): ChangedRange[] {
  const ranges: ChangedRange[] = []
  let from = 0
  for (;;) {
    const run = machine.nextDirty(disk, from, Number.MAX_SAFE_INTEGER, machine.committed)
    if (run === undefined) return ranges
    ranges.push(run)
    from = run.at + run.length
  }
}
