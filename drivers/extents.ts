/** Extents, as image formats make them: of a part of a file that a part of the disk is in, and of many small ones. */

import type { BlockDevice, Extent } from '../core/block-device.ts'
import { then, type MaybePromise } from '../core/maybe-promise.ts'

/** Neighbours of one kind made one. */
export function joined(extents: readonly Extent[]): Extent[] {
  const result: Extent[] = []
  for (const extent of extents) {
    const last = result.at(-1)
    if (last?.kind === extent.kind && last.at + last.length === extent.at)
      result[result.length - 1] = { ...last, length: last.length + extent.length }
    else result.push(extent)
  }
  return result
}

/** The extents of a range of `device`, moved by `shift` bytes. */
export function mappedStatus(
  device: BlockDevice,
  at: number,
  length: number,
  shift: number,
): MaybePromise<Extent[]> {
  return then(device.status(at, length), (extents) =>
    extents.map((extent) => ({ ...extent, at: extent.at + shift })),
  )
}
