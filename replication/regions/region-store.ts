/** Where the map of a disk's changed regions is kept: sectors that can be written one by one. */

import { SECTOR } from '../../core/units.ts'

export interface RegionStore {
  /** Bytes of disk behind one bit. */
  readonly regionBytes: number
  /** The bitmap when the store was opened, whole sectors: full where there was none that could be trusted. */
  readonly found: Buffer
  /** Writes these sectors of the bitmap. A crash leaves each of them as it was or as it is. Durable when it resolves. @throws Fault */
  save(bitmap: Buffer, sectors: readonly number[]): Promise<void>
  close(): Promise<void>
}

/** Bytes of a bitmap with whole sectors. */
export function bitmapBytes(diskSize: number, regionBytes: number): number {
  const bits = Math.ceil(diskSize / regionBytes)
  return Math.ceil(bits / (8 * SECTOR)) * SECTOR
}

/** For replicas that live as long as their process. */
export function memoryRegions(diskSize: number, regionBytes: number): RegionStore {
  return {
    regionBytes,
    found: Buffer.alloc(bitmapBytes(diskSize, regionBytes)),
    save: () => Promise.resolve(),
    close: () => Promise.resolve(),
  }
}
