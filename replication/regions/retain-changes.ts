/** Takes out of the maps of changed regions what a primary knows to be clean, and its images to hold durably. */

import type { BlockDevice } from '../../core/block-device.ts'
import type { PrimaryMachine } from '../machine/primary.ts'
import type { RegionMap } from './region-map.ts'

export interface RetainedDisk {
  readonly below: Pick<BlockDevice, 'flush'>
  readonly regions: RegionMap
  /** It is one of the group's no longer. */
  readonly gone?: true
}

/** @param disks in the machine's order @throws Fault when an image cannot be flushed, or a map written */
export async function retainChanges(
  machine: Pick<PrimaryMachine, 'nextDirty' | 'committed'>,
  disks: readonly RetainedDisk[],
): Promise<void> {
  for (const [index, { regions, below, gone }] of disks.entries()) {
    if (gone === true) continue
    await regions.retain(
      (at, length) => {
        const run = machine.nextDirty(index, at, 1, machine.committed)
        return run !== undefined && run.at < at + length
      },
      async () => below.flush(),
    )
  }
}
