/**
 * Copies what one image of a chain has into its parent.
 *
 * Invariants:
 *  - The image and the parent are locked, and the whole chain was opened once, before the parent is written.
 *  - The image itself is not changed: what it shows is the same before, during and after, whatever happens meanwhile.
 */

import { Fault } from '../core/fault.ts'
import { SILENT } from '../core/logger.ts'
import { MiB } from '../core/units.ts'
import { Guard } from './guard.ts'
import type { ImageFormat, ImageLayer, Progress } from './image-format.ts'
import { imageFormat } from './image-formats.ts'

const CHUNK = 1 * MiB

/** @returns the parent's path, and the bytes that went into it */
export async function commitImage(
  format: ImageFormat,
  path: string,
  parents: readonly string[],
  progress: Progress,
): Promise<{ parent: string; bytes: number }> {
  const use = { readOnly: true, logger: SILENT, parents }
  const { backing } = await format.describe(path, parents)
  if (backing === undefined) {
    throw new Fault('INVALID', 'the image has no parent to commit into', { where: path })
  }
  const parentFormat = backing.format === undefined ? undefined : imageFormat(backing.format)
  if (backing.path === undefined || parentFormat === undefined) {
    throw new Fault('NOT_FOUND', `the parent ${backing.named} cannot be used`, {
      where: path,
      remedy: 'see: colotap image info',
    })
  }
  // Opening the chain is what proves that this parent belongs to this image.
  await (await format.open(path, use)).close()
  const layer = await format.open(path, { ...use, alone: true })
  try {
    const opened = await parentFormat.open(backing.path, { ...use, readOnly: false })
    const parent = new Guard(opened, false)
    try {
      const { size } = layer.geometry
      if (parent.geometry.size < size) await parent.resize(size)
      const bytes = await copyHeld(layer, parent, progress)
      await parent.flush()
      return { parent: backing.path, bytes }
    } finally {
      await parent.close()
    }
  } finally {
    await layer.close()
  }
}

async function copyHeld(layer: ImageLayer, parent: Guard, progress: Progress): Promise<number> {
  const { size } = layer.geometry
  const buffer = Buffer.from(new ArrayBuffer(CHUNK))
  let bytes = 0
  for (let at = 0; at < size;) {
    for (const extent of await layer.held(at, size - at)) {
      const end = extent.at + extent.length
      for (; at < end && extent.kind !== 'hole'; at += CHUNK) {
        const part = buffer.subarray(0, Math.min(CHUNK, end - at))
        await layer.read(part, at)
        if (part.every((byte) => byte === 0)) await parent.zero(at, part.length, 0)
        else await parent.write(part, at, 0)
        bytes += part.length
        progress(at, size)
      }
      at = end
    }
  }
  progress(size, size)
  return bytes
}
