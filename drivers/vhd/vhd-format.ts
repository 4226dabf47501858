/** VHD as an image format: what `colotap image` does with it. */

import { stat } from 'node:fs/promises'

import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { SECTOR } from '../../core/units.ts'
import { allSet, bitAt } from '../../formats/vhd/bits.ts'
import { bitmapSize } from '../../formats/vhd/dynamic-header.ts'
import { DIFFERENCING, DISK_TYPES, unixTimeMs } from '../../formats/vhd/footer.ts'
import { chsSize } from '../../formats/vhd/geometry.ts'
import { endOf, endOfBlocks, nextSlot, slotSize, UNUSED } from '../../formats/vhd/layout.ts'
import type { ImageFile } from '../aio/aio-device.ts'
import { openImageFile } from '../aio/aio.ts'
import { unlockedLook } from '../aio/unlocked-look.ts'
import { BackingChain } from '../backing-chain.ts'
import type {
  BackingPlace,
  CheckReport,
  ImageDescription,
  ImageFormat,
  Progress,
  Repair,
} from '../image-format.ts'
import { createVhd, VHD_CREATION } from './create-vhd.ts'
import { openVhd } from './open-vhd.ts'
import { SparseVhd } from './sparse-vhd.ts'
import { readStructures, type SparseStructures, type VhdStructures } from './vhd-structures.ts'

export const vhdFormat: ImageFormat = {
  name: 'vhd',
  aliases: ['vpc', 'vhd'],
  creation: VHD_CREATION,
  open: openVhd,
  create: createVhd,
  describe,
  check,
}

async function describe(path: string, parents: readonly string[]): Promise<ImageDescription> {
  const { size: fileSize, blocks } = await statOf(path)
  const structures = await unlockedLook(path, (file) => readStructures(file, path))
  const { footer } = structures
  return {
    path,
    format: 'vhd',
    size: footer.currentSize,
    fileSize,
    allocated: blocks * SECTOR,
    backing: await backingOf(path, structures, parents),
    details: {
      type: DISK_TYPES[footer.type] ?? 'unknown',
      uuid: uuidText(footer.uuid),
      creator: footer.creator.replace(/\0+$/, '').trim(),
      'creator version': `${footer.creatorVersion >>> 16}.${footer.creatorVersion & 0xffff}`,
      'created or changed': new Date(unixTimeMs(footer.timestamp)).toISOString(),
      'size by geometry': chsSize(footer.geometry),
      hidden: footer.hidden !== 0,
      ...(structures.kind === 'sparse' ? sparseDetails(structures) : {}),
    },
  }
}

function sparseDetails(structures: SparseStructures): Record<string, string | number | boolean> {
  const { header, table, batmap, flaws } = structures
  return {
    'block size': header.blockSize,
    'blocks in the image': table.reduce((sum, entry) => (entry === UNUSED ? sum : sum + 1), 0),
    'blocks of the disk': table.length,
    'can grow to': header.tableEntries * header.blockSize,
    batmap: batmap !== undefined,
    ...(flaws.length === 0 ? {} : { flaws: flaws.join('; ') }),
  }
}

/** The first of the parent's names under which something is. */
async function backingOf(
  image: string,
  structures: VhdStructures,
  parents: readonly string[],
): Promise<BackingPlace | undefined> {
  if (structures.kind === 'fixed' || structures.footer.type !== DIFFERENCING) return undefined
  const { parentNames, header } = structures
  const format = header.parentUuid.every((byte) => byte === 0) ? 'aio' : 'vhd'
  const chain = await BackingChain.from(image, parents)
  for (const named of parentNames) {
    try {
      return { named, format, path: (await chain.parent(named)).path }
    } catch (error) {
      if (!(error instanceof Fault)) throw error
    }
  }
  return { named: parentNames[0] ?? '', format, path: undefined }
}

async function check(path: string, repair: Repair, progress: Progress): Promise<CheckReport> {
  const report = await inspected(path, (file) => reportOn(file, path, progress))
  const mends = repair === 'all' ? report.errors.length > 0 : report.leaks.length > 0
  if (repair === 'none' || !mends) return report
  // Closing an image that can be written leaves both footers and the batmap in order.
  const image = await openVhd(path, { readOnly: false, logger: SILENT, parents: [], alone: true })
  try {
    if (image instanceof SparseVhd) await image.cutTail()
  } finally {
    await image.close()
  }
  const after = await check(path, 'none', progress)
  const gone = (before: readonly string[], now: readonly string[]): readonly string[] =>
    before.filter((each) => !now.includes(each))
  return {
    ...after,
    repaired: [...gone(report.errors, after.errors), ...gone(report.leaks, after.leaks)],
  }
}

const NOTHING: CheckReport = { errors: [], leaks: [], repaired: [] }

/** What cannot be read as a VHD at all is the one fault that an image has then. */
async function reportOn(file: ImageFile, path: string, progress: Progress): Promise<CheckReport> {
  let structures: VhdStructures
  try {
    structures = await readStructures(file, path)
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'INVALID') throw error
    return { errors: [error.what], leaks: [], repaired: [] }
  }
  return structures.kind === 'fixed' ? NOTHING : checkSparse(file, structures, progress)
}

async function checkSparse(
  file: ImageFile,
  structures: SparseStructures,
  progress: Progress,
): Promise<CheckReport> {
  const { header, table, complete, areas, flaws } = structures
  const errors = [...flaws]
  const bitmap = Buffer.from(new ArrayBuffer(bitmapSize(header.blockSize)))
  const sectors = header.blockSize / SECTOR
  for (const [block, entry] of table.entries()) {
    if (block % 1024 === 0) progress(block, table.length)
    if (entry === UNUSED || !bitAt(complete, block)) continue
    await file.read(bitmap, entry * SECTOR)
    if (!allSet(bitmap, sectors)) errors.push(`the batmap calls block ${block} complete; it is not`)
  }
  const end = endOfBlocks(table, header.blockSize, endOf(areas))
  const behind = file.geometry.size - SECTOR - end
  const gap = nextSlot(end, header.blockSize) - end + slotSize(header.blockSize)
  const leaks = behind >= gap ? [`${behind} bytes behind the last block are not used`] : []
  return { errors, leaks, repaired: [] }
}

/** Runs `use` with an image that is open for reading, alone. */
async function inspected<T>(path: string, use: (file: ImageFile) => Promise<T>): Promise<T> {
  await statOf(path)
  const file = await openImageFile(path, { readOnly: true, logger: SILENT, threads: 1 })
  try {
    return await use(file)
  } finally {
    await file.close()
  }
}

async function statOf(path: string): Promise<{ size: number; blocks: number }> {
  try {
    return await stat(path)
  } catch (cause) {
    throw new Fault('NOT_FOUND', 'the image does not exist', {
      where: path,
      remedy: 'correct the path',
      cause,
    })
  }
}

function uuidText(uuid: Buffer): string {
  const hex = uuid.toString('hex')
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    hex.slice(12, 16),
    hex.slice(16, 20),
    hex.slice(20),
  ].join('-')
}
