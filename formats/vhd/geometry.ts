/**
 * Cylinders, heads and sectors of a disk, as the VHD specification's appendix "CHS Calculation" derives them from its
 * size. Rounding goes down: what the geometry spans is never more than the disk, and up to a cylinder less.
 */

import { SECTOR } from '../../core/units.ts'
import { structure, u16, u8, type ValueOf } from '../structure.ts'

export const CHS = structure('disk geometry', 4, {
  cylinders: [0, u16],
  heads: [2, u8],
  sectorsPerTrack: [3, u8],
})

export type Chs = ValueOf<typeof CHS>

const MOST_CYLINDERS = 65_535

/** The geometry of a disk of `size` bytes. */
export function chsOf(size: number): Chs {
  const sectors = Math.min(Math.ceil(size / SECTOR), MOST_CYLINDERS * 16 * 255)
  if (sectors >= MOST_CYLINDERS * 16 * 63) return shape(sectors, 16, 255)
  const tracks = Math.floor(sectors / 17)
  const heads = Math.max(4, Math.ceil(tracks / 1024))
  if (heads <= 16 && tracks < heads * 1024) return shape(sectors, heads, 17)
  if (Math.floor(sectors / 31) < 16 * 1024) return shape(sectors, 16, 31)
  return shape(sectors, 16, 63)
}

/** Bytes that a geometry spans. */
export function chsSize({ cylinders, heads, sectorsPerTrack }: Chs): number {
  return cylinders * heads * sectorsPerTrack * SECTOR
}

function shape(sectors: number, heads: number, sectorsPerTrack: number): Chs {
  const tracks = Math.floor(sectors / sectorsPerTrack)
  return { cylinders: Math.floor(tracks / heads), heads, sectorsPerTrack }
}
