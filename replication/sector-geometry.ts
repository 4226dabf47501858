/** The geometry of a replicated disk: that of the device below, in whole sectors. */

import type { Geometry } from '../core/block-device.ts'
import { SECTOR } from '../core/units.ts'

export function sectorGeometry({ block, ...geometry }: Geometry): Geometry {
  const [min, preferred] = [Math.max(block.min, SECTOR), Math.max(block.preferred, SECTOR)]
  return { ...geometry, block: { ...block, min, preferred } }
}
