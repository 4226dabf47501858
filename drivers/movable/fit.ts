/**
 * Whether a device can take the place of another one under the same clients, who learned size, limits and capabilities
 * once. Pure; one test per line.
 */

import type { BlockDevice, Capabilities, Geometry } from '../../core/block-device.ts'
import { Guard } from '../guard.ts'

/** What clients were told. */
export interface Shown {
  readonly geometry: Geometry
  readonly can: Capabilities
}

/**
 * Why a disk of `size` bytes cannot take the place of one of `shown` bytes; undefined where it can.
 * @param fixed the size is somebody else's business as well: the other side of a replication has it
 */
export function sizeObjection(shown: number, size: number, fixed: boolean): string | undefined {
  if (size < shown) return `its disk has ${size} bytes, and clients use one of ${shown}`
  if (fixed && size !== shown)
    return `its disk has ${size} bytes, and a replicated one keeps its ${shown}`
  return undefined
}

/** The same for everything that cannot be made up for. */
export function objection(shown: Shown, device: BlockDevice, fixed: boolean): string | undefined {
  const { geometry, can } = device
  const size = sizeObjection(shown.geometry.size, geometry.size, fixed)
  if (size !== undefined) return size
  if (geometry.readOnly && !shown.geometry.readOnly) return 'it is read-only, and clients write'
  if (shown.can.flush && !can.flush) return 'it makes nothing durable, and clients rely on flushes'
  if (geometry.block.max < shown.geometry.block.max)
    return `it takes at most ${geometry.block.max} bytes at a time, and clients may send ${shown.geometry.block.max}`
  return undefined
}

/** What a device may lack without a client noticing more than the time it takes: a guard does it in another way. */
const MADE_UP_FOR = ['fua', 'trim', 'zero', 'fastZero', 'status'] as const

/** The device, under a guard of its own where it cannot do all that was shown. */
export function fitted(shown: Shown, device: BlockDevice): BlockDevice {
  const lacks = MADE_UP_FOR.some((what) => shown.can[what] && !device.can[what])
  const coarse = device.geometry.block.min > shown.geometry.block.min
  return lacks || coarse ? new Guard(device, false) : device
}
