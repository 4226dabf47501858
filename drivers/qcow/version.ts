/** Which version of QCOW a file is. */

import type { BlockDevice } from '../../core/block-device.ts'
import { QCOW_MAGIC } from '../../formats/qcow/header.ts'

/** The version of a QCOW image, or undefined where it is none. */
export async function versionOf(file: BlockDevice): Promise<number | undefined> {
  const start = Buffer.alloc(8)
  if (file.geometry.size < start.length) return undefined
  await file.read(start, 0)
  return start.readUInt32BE(0) === QCOW_MAGIC ? start.readUInt32BE(4) : undefined
}
