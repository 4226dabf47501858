/**
 * What a program must do to an image before it changes it (qcow2.rst, "autoclear_features" and "Bitmaps"): clear the
 * auto-clear bits that it does not know, and mark bitmaps that would have to follow every change as in use.
 */

import { SECTOR } from '../../core/units.ts'
import {
  AUTO,
  BITMAP_FLAGS_AT,
  IN_USE,
  parseBitmapDirectory,
  parseBitmapsExtension,
} from '../../formats/qcow/bitmaps.ts'
import { EXTENSION } from '../../formats/qcow/header-extensions.ts'
import { BITMAPS, KNOWN_AUTOCLEAR, type Qcow2Header } from '../../formats/qcow/header.ts'
import { roundDown, roundUp } from '../../formats/qcow/layout.ts'
import type { HostFile } from './host-file.ts'
import type { QcowImage } from './qcow-image.ts'

/** Before the content of the disk changes. */
export async function prepareForChanges(image: QcowImage): Promise<void> {
  await clearUnknownFeatures(image, true)
}

/** Before anything else changes. @param content whether bitmaps that follow every change become out of date as well */
export async function clearUnknownFeatures(image: QcowImage, content = false): Promise<void> {
  const { file, format, qcow2 } = image
  // Other programs may end the file within its last cluster; from here on every cluster can be written whole.
  if (file.grows) await file.ensure(roundUp(file.size, format.layout.clusterSize))
  if (qcow2 === undefined || qcow2.header.version === 2) return
  const { header, headerSector } = qcow2
  if (content && (header.autoclear & BITMAPS) !== 0n) await markBitmaps(file, header)
  const kept = header.autoclear & KNOWN_AUTOCLEAR
  if (kept !== header.autoclear) await headerSector.write({ autoclear: kept })
}

/** Marks the bitmaps that must reflect every change as not up to date; the others stay valid. */
async function markBitmaps(file: HostFile, header: Qcow2Header): Promise<void> {
  const extension = header.extensions.find(({ type }) => type === EXTENSION.bitmaps)
  if (extension === undefined) return
  const { at, count, length } = parseBitmapsExtension(extension.data, header.layout, file.size)
  const directory = Buffer.alloc(length)
  await file.read(directory, at)
  let changed = false
  for (const { entryAt, flags } of parseBitmapDirectory(
    directory,
    count,
    header.layout,
    file.size,
  )) {
    if ((flags & AUTO) === 0 || (flags & IN_USE) !== 0) continue
    const flagsAt = entryAt + BITMAP_FLAGS_AT
    directory.writeUInt32BE(flags | IN_USE, flagsAt)
    const sector = roundDown(flagsAt, SECTOR)
    await file.write(directory.subarray(sector, sector + SECTOR), at + sector)
    changed = true
  }
  if (changed) await file.flush()
}
