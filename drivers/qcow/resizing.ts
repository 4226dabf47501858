/**
 * A QCOW2 disk of another size.
 *
 * Invariants:
 *  - What a disk grows by reads as zeroes, whatever was beyond its end before, in this image or in the backing one.
 *  - The header changes in single atomic writes, after everything that it relies on is on stable storage.
 */

import { Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
import { BITMAPS } from '../../formats/qcow/header.ts'
import { l1EntriesFor, mostDiskSize, roundUp } from '../../formats/qcow/layout.ts'
import type { Clearer } from './clearer.ts'
import type { Metadata } from './metadata.ts'
import type { Qcow2Parts, QcowImage } from './qcow-image.ts'

/** No request may be under way. @throws Fault when the size is impossible; then the image is as it was */
export async function resizeImage(
  image: QcowImage,
  qcow2: Qcow2Parts,
  metadata: Metadata,
  clearer: Clearer,
  size: number,
): Promise<void> {
  const reason = objection(image.path, qcow2, size)
  if (reason !== undefined) throw reason
  if (size === image.size) return
  await metadata.settle()
  if (size > image.size) {
    const entries = l1EntriesFor(size, qcow2.header.layout)
    if (entries * 8 > image.mapping.l1.length) await moveL1(image, qcow2, metadata, entries)
    else if (entries > qcow2.l1Entries) await announceL1(image, qcow2, metadata, entries)
    await grow(image, qcow2, metadata, clearer, size)
  } else await shrink(image, qcow2, metadata, clearer, size)
}

function objection(path: string, { header }: Qcow2Parts, size: number): Fault | undefined {
  const most = mostDiskSize(header.layout)
  if (size > most) {
    return new Fault('INVALID', `a disk of ${size} bytes is too large for this image`, {
      where: path,
      remedy: `give at most ${most} bytes, or convert the image to one with larger clusters`,
    })
  }
  if (header.snapshotCount > 0) {
    return new Fault('NOT_SUPPORTED', 'an image with snapshots is not resized', {
      where: path,
      remedy: 'delete them first: colotap image internal-snapshot --delete',
    })
  }
  if ((header.autoclear & BITMAPS) !== 0n) {
    return new Fault('NOT_SUPPORTED', 'an image with persistent bitmaps is not resized', {
      where: path,
      remedy: 'remove the bitmaps first: qemu-img bitmap --remove',
    })
  }
  return undefined
}

async function grow(
  image: QcowImage,
  qcow2: Qcow2Parts,
  metadata: Metadata,
  clearer: Clearer,
  size: number,
): Promise<void> {
  const before = image.size
  image.size = size
  try {
    // Where nothing was beyond the end, this finds nothing to do.
    await clearer.zero(before, size - before, 0)
    await metadata.settle()
    await writeHeader(qcow2, metadata, { size })
  } catch (error) {
    image.size = before
    throw error
  }
}

async function shrink(
  image: QcowImage,
  qcow2: Qcow2Parts,
  metadata: Metadata,
  clearer: Clearer,
  size: number,
): Promise<void> {
  await writeHeader(qcow2, metadata, { size })
  // What is beyond the end is given back; growing would zero it as well.
  await clearer.zero(size, image.size - size, 0)
  image.size = size
  await metadata.settle()
}

/** The table has room in its last sector: only the header has to say that there are more entries. */
async function announceL1(
  image: QcowImage,
  qcow2: Qcow2Parts,
  metadata: Metadata,
  entries: number,
): Promise<void> {
  const { mapping } = image
  const sector = mapping.l1.subarray(mapping.l1.length - SECTOR)
  await image.file.write(Buffer.from(sector), mapping.l1At + mapping.l1.length - SECTOR)
  await writeHeader(qcow2, metadata, { l1: { at: mapping.l1At, entries } })
  qcow2.l1Entries = entries
}

async function moveL1(
  image: QcowImage,
  qcow2: Qcow2Parts,
  metadata: Metadata,
  entries: number,
): Promise<void> {
  const { file, format, mapping, places } = image
  const { clusterSize } = format.layout
  const clusters = Math.ceil((entries * 8) / clusterSize)
  const l1 = Buffer.alloc(roundUp(entries * 8, SECTOR))
  const { at } = await qcow2.allocator.allocateWhole(clusters)
  const old = { at: mapping.l1At, clusters: Math.ceil((qcow2.l1Entries * 8) / clusterSize) }
  try {
    await metadata.settle()
    mapping.l1.copy(l1)
    await file.write(l1, at)
    await writeHeader(qcow2, metadata, { l1: { at, entries } })
  } catch (error) {
    metadata.unused(at, clusters)
    throw error
  }
  mapping.moveL1(l1, at)
  qcow2.l1Entries = entries
  places.add(at, clusters * clusterSize)
  if (old.clusters > 0) {
    places.remove(old.at, old.clusters * clusterSize)
    metadata.unused(old.at, old.clusters)
  }
}

function writeHeader(
  { headerSector }: Qcow2Parts,
  metadata: Metadata,
  patch: Parameters<typeof headerSector.write>[0],
): Promise<void> {
  return metadata.inOrder(() => headerSector.write(patch))
}
