/**
 * Opens a VHD with all its parents.
 *
 * Invariants:
 *  - A parent is one that the image names, that lies where parents may lie (backing-chain.ts), and that has the uuid which
 *    the image remembers; parents are opened for reading alone.
 *  - When opening fails, nothing that was opened on the way stays open, and nothing has been written.
 */

import { stat } from 'node:fs/promises'

import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
import { DIFFERENCING, vhdTime } from '../../formats/vhd/footer.ts'
import type { ImageFile } from '../aio/aio-device.ts'
import { openImageFile, type ImageFileOptions } from '../aio/aio.ts'
import { BackingChain } from '../backing-chain.ts'
import type { ImageUse } from '../image-format.ts'
import { FixedVhd } from './fixed-vhd.ts'
import { SparseVhd } from './sparse-vhd.ts'
import { readStructures, type SparseStructures, type VhdStructures } from './vhd-structures.ts'

export type VhdDevice = FixedVhd | SparseVhd

export interface VhdUse extends ImageUse, Pick<ImageFileOptions, 'discard' | 'threads'> {}

/** @throws Fault that says what is wrong with the image or its parents */
export async function openVhd(path: string, use: VhdUse): Promise<VhdDevice> {
  return openAt(await BackingChain.from(path, use.parents), use)
}

/** A parent is read by few at a time. */
const PARENT_THREADS = 2

async function openAt(chain: BackingChain, use: VhdUse): Promise<VhdDevice> {
  const { path } = chain
  const file = await openImageFile(path, use)
  let parent: BlockDevice | undefined
  try {
    const structures = await readStructures(file, path)
    if (structures.kind === 'sparse') {
      for (const flaw of structures.flaws)
        use.logger.warn({ path, flaw }, 'the image has a flaw that does no harm')
      if (structures.footer.type === DIFFERENCING && use.alone !== true)
        parent = await openParent(structures, chain, use)
    }
    if (!use.readOnly) await completeFooter(file)
    return await deviceOver(file, path, structures, parent)
  } catch (error) {
    await parent?.close()
    await file.close()
    throw error
  }
}

/** The device of an open image; it takes over the file and the parent once it is there. */
export async function deviceOver(
  file: ImageFile,
  path: string,
  structures: VhdStructures,
  parent: BlockDevice | undefined,
): Promise<VhdDevice> {
  if (structures.kind === 'sparse') return SparseVhd.over(file, path, structures, parent)
  return new FixedVhd(file, path, structures.footer, structures.footerAt)
}

/** A footer of 511 bytes lacks its last one, which is zero: with it the file ends as all others do. */
async function completeFooter(file: ImageFile): Promise<void> {
  const { size } = file.geometry
  if (size % SECTOR === SECTOR - 1) await file.resize(size + 1)
}

/** The first of the parents that the image names which is there, may be used, and is the one. */
async function openParent(
  structures: SparseStructures,
  chain: BackingChain,
  use: VhdUse,
): Promise<BlockDevice> {
  const { header, parentNames } = structures
  let refusal: Fault | undefined
  for (const name of parentNames) {
    try {
      const place = await chain.parent(name)
      const parent = await openCandidate(place, header.parentUuid, use)
      await compareTime(place.path, header.parentTimestamp, chain.path, use)
      return parent
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      if (error.code !== 'NOT_FOUND') refusal ??= error
    }
  }
  if (refusal !== undefined) throw refusal
  throw new Fault('NOT_FOUND', `the parent is not there: ${parentNames.join(', ')}`, {
    where: chain.path,
    remedy: 'put it back under one of these names',
  })
}

/** tapdisk's rule: an image without the uuid of its parent has a raw one. */
async function openCandidate(place: BackingChain, uuid: Buffer, use: VhdUse): Promise<BlockDevice> {
  const options = {
    readOnly: true,
    logger: use.logger,
    parents: use.parents,
    threads: PARENT_THREADS,
  }
  if (uuid.every((byte) => byte === 0)) return openImageFile(place.path, options)
  const parent = await openAt(place, options)
  if (parent.footer.uuid.equals(uuid)) return parent
  await parent.close()
  throw new Fault('INVALID', 'this is not the parent that the image was made for (another uuid)', {
    where: place.path,
    remedy: 'put the right parent in its place',
  })
}

/**
 * Only a warning: copying a parent, committing into it, or marking it hidden all change its time and not what it holds
 * for this image, which is why tapdisk does not look at it at all.
 */
async function compareTime(
  parent: string,
  remembered: number,
  path: string,
  { logger }: VhdUse,
): Promise<void> {
  const { mtimeMs } = await stat(parent)
  if (vhdTime(mtimeMs) === remembered) return
  logger.warn({ path, parent }, 'the parent was changed or copied after the image was made')
}
