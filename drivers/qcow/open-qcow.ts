/**
 * Opens a QCOW image of any version with all its parents.
 *
 * Invariants:
 *  - A parent is one that the image names, and lies where parents may lie (backing-chain.ts); so does a data file. Parents
 *    are opened for reading alone.
 *  - A format that the image records is believed. Without one only the parent itself is looked at: it may be any image
 *    that needs no further file.
 *  - When opening fails, nothing that was opened on the way stays open.
 */

import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
import { QCOW_MAGIC } from '../../formats/qcow/header.ts'
import { openImageFile, type ImageFileOptions } from '../aio/aio.ts'
import { BackingChain } from '../backing-chain.ts'
import type { ImageLayer, ImageUse } from '../image-format.ts'
import { openVhd } from '../vhd/open-vhd.ts'
import { isUnclosed, openQcow2, readHeader, USUAL_CACHE, type Qcow2Options } from './open-qcow2.ts'
import { openQcow1, type Qcow1Options } from './open-qcow1.ts'
import type { QcowImage } from './qcow-image.ts'
import { repairUnclosed } from './check-qcow.ts'
import { versionOf } from './version.ts'
import { QcowDevice } from './qcow-device.ts'

export interface QcowUse extends ImageUse, Pick<ImageFileOptions, 'discard' | 'threads'> {
  /** Bytes of tables in memory. */
  readonly cache?: number
}

/** @throws Fault that says what is wrong with the image or its parents */
export async function openQcow(path: string, use: QcowUse): Promise<ImageLayer> {
  return openAt(await BackingChain.from(path, use.parents), use)
}

/** A parent is read by few at a time. */
const PARENT_THREADS = 2

async function openAt(chain: BackingChain, use: QcowUse): Promise<ImageLayer> {
  const { path } = chain
  const file = await openImageFile(path, use)
  try {
    if ((await versionOf(file)) === 1)
      return new QcowDevice(await openQcow1(file, qcow1Options(chain, use)))
    if (!use.readOnly && isUnclosed((await readHeader(file, path)).header)) {
      use.logger.warn(
        { path },
        'the image was not closed in order; its refcounts are being repaired',
      )
      await repairUnclosed(file, path)
    }
    return new QcowDevice(await openQcow2(file, qcow2Options(chain, use)))
  } catch (error) {
    await file.close()
    throw error
  }
}

/** Opens a QCOW2 image for work on its structures. */
export async function openQcow2File(path: string, use: QcowUse): Promise<QcowImage> {
  const chain = await BackingChain.from(path, use.parents)
  const file = await openImageFile(path, use)
  try {
    return await openQcow2(file, qcow2Options(chain, use))
  } catch (error) {
    await file.close()
    throw error
  }
}

function qcow1Options(chain: BackingChain, use: QcowUse): Qcow1Options {
  return {
    path: chain.path,
    readOnly: use.readOnly,
    logger: use.logger,
    cache: use.cache ?? USUAL_CACHE,
    openBacking: async (named) =>
      use.alone === true ? undefined : openParent(await chain.parent(named), undefined, use),
  }
}

function qcow2Options(chain: BackingChain, use: QcowUse): Qcow2Options {
  return {
    path: chain.path,
    readOnly: use.readOnly,
    logger: use.logger,
    unmap: use.discard !== 'ignore',
    cache: use.cache ?? USUAL_CACHE,
    openBacking: async ({ backingFile, backingFormat }) =>
      backingFile === undefined || use.alone === true
        ? undefined
        : openParent(await chain.parent(backingFile), backingFormat, use),
    openDataFile: async (name) => {
      const place = await chain.parent(name)
      return openImageFile(place.path, use)
    },
  }
}

async function openParent(
  place: BackingChain,
  format: string | undefined,
  use: QcowUse,
): Promise<BlockDevice> {
  const { logger, parents } = use
  const options = { readOnly: true, logger, parents, threads: PARENT_THREADS }
  switch (format ?? (await guessFormat(place.path, use))) {
    case 'raw':
    case 'file':
    case 'host_device':
      return openImageFile(place.path, options)
    case 'qcow':
    case 'qcow2':
      return openAt(place, { ...options, ...cacheOf(use) })
    case 'vpc':
    case 'vhd':
      return openVhd(place.path, options)
    default:
      throw new Fault('NOT_SUPPORTED', `the image names a parent of the format ${format ?? ''}`, {
        where: place.path,
        remedy: 'convert the parent: qemu-img convert -O qcow2',
      })
  }
}

function cacheOf({ cache }: QcowUse): Pick<QcowUse, 'cache'> {
  return cache === undefined ? {} : { cache }
}

/** What an image without a recorded format of its parent means. */
async function guessFormat(path: string, { logger }: QcowUse): Promise<string> {
  const file = await openImageFile(path, { readOnly: true, logger, threads: 1 })
  try {
    const start = Buffer.alloc(Math.min(SECTOR, file.geometry.size))
    await file.read(start, 0)
    if (start.length >= 16 && start.readUInt32BE(0) === QCOW_MAGIC) {
      // The name of a parent in it may have been written by a guest, into a raw image.
      if (start.readBigUInt64BE(8) === 0n) return 'qcow2'
      throw unclear(path)
    }
    if (start.toString('latin1', 0, 8) === 'conectix') throw unclear(path)
    logger.warn({ path }, 'the format of the parent is not recorded; it is taken as raw')
    return 'raw'
  } finally {
    await file.close()
  }
}

function unclear(path: string): Fault {
  return new Fault(
    'NOT_PERMITTED',
    'the format of this parent is not recorded in the image over it',
    {
      where: path,
      remedy: 'record it: qemu-img rebase -u -b PARENT -F FORMAT IMAGE',
    },
  )
}
