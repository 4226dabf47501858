/**
 * Makes VHD images, so that qemu, libvhd and Windows all take them, and see the same size.
 *
 * Invariants:
 *  - A file that is there already is never touched; a file that could not be completed is removed.
 *  - The creator is `win `, or `tap` 1.3 with a batmap: QEMU, which goes by the creator, goes by the current size of both,
 *    as libvhd and Windows do. The batmap is for tapdisk alone: QEMU puts its first block over it.
 */

import { randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import { open, realpath, rm, stat, type FileHandle } from 'node:fs/promises'
import { dirname, relative, resolve } from 'node:path'

import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { formatSize, GiB, SECTOR } from '../../core/units.ts'
import {
  BATMAP_HEADER,
  batmapCoverage,
  batmapSize,
  newBatmapHeader,
} from '../../formats/vhd/batmap.ts'
import {
  blocksOf,
  headerBytes,
  LARGEST_BLOCK,
  MOST_BLOCKS,
  newHeader,
  NO_LOCATOR,
  SMALLEST_BLOCK,
  USUAL_BLOCK,
  type Locator,
} from '../../formats/vhd/dynamic-header.ts'
import {
  DIFFERENCING,
  DYNAMIC,
  FIXED,
  footerBytes,
  LARGEST_DISK,
  newFooter,
  vhdTime,
  type Footer,
} from '../../formats/vhd/footer.ts'
import { tableSize } from '../../formats/vhd/layout.ts'
import { encodeLocators, encodeParentName, fillLocators } from '../../formats/vhd/parent-names.ts'
import { checkSize } from '../../formats/vhd/resize.ts'
import {
  booleanSetting,
  choiceSetting,
  sizeSetting,
  type SettingDescription,
  type Stage,
} from '../driver.ts'
import { unlockedLook } from '../aio/unlocked-look.ts'
import type { NewImage } from '../image-format.ts'
import { openVhd } from './open-vhd.ts'
import { readStructures } from './vhd-structures.ts'

export const VHD_CREATION: Readonly<Record<string, SettingDescription>> = {
  subformat: {
    meaning: 'whether blocks come as they are written, are all there, or hide those of a parent',
    values: 'dynamic|fixed|differencing',
  },
  block_size: { meaning: 'bytes of a block; libvhd knows only 2M', values: '512-256M' },
  batmap: {
    meaning: 'keep a batmap, which spares tapdisk reading bitmaps; not for images that QEMU writes',
    values: 'on|off',
  },
  maximum: {
    meaning: 'the size up to which the image can grow; four times its size unless given',
    values: 'a size up to 2040G',
  },
}

interface Parent {
  readonly path: string
  /** All zero for a raw one. */
  readonly uuid: Buffer
  readonly timestamp: number
  readonly size: number
}

/** Bytes and where they belong. */
interface Piece {
  readonly at: number
  readonly bytes: Buffer
}

export async function createVhd(path: string, image: NewImage): Promise<void> {
  const stage: Stage = { driver: 'vhd', target: path, settings: image.settings }
  const usual = image.backing === undefined ? 'dynamic' : 'differencing'
  const kind = choiceSetting(stage, 'subformat', ['dynamic', 'fixed', 'differencing'], usual)
  if ((kind === 'differencing') !== (image.backing !== undefined)) {
    throw new Fault('INVALID', `subformat=${kind} does not go with what is said about a parent`, {
      where: path,
      remedy: 'give backing= for a differencing image, and only then',
    })
  }
  checkSize(image.size)
  const parent = image.backing === undefined ? undefined : await lookAt(path, image.backing)
  if (parent !== undefined && image.size < parent.size) {
    throw new Fault(
      'INVALID',
      `the image would be smaller than its parent (${parent.size} bytes)`,
      {
        where: path,
        remedy: 'give it the size of its parent, or more',
      },
    )
  }
  const pieces = kind === 'fixed' ? fixedImage(image.size) : sparseImage(stage, image.size, parent)
  await writeNew(path, pieces)
}

/** What a child must know of its parent. */
async function lookAt(
  child: string,
  { named, format = 'vhd' }: NonNullable<NewImage['backing']>,
): Promise<Parent> {
  const absolute = resolve(dirname(child), named)
  if (format !== 'vhd' && format !== 'aio') {
    throw new Fault('NOT_SUPPORTED', `the parent of a VHD cannot be of the format ${format}`, {
      where: absolute,
      remedy: 'use qcow for the image',
    })
  }
  const found = await stat(absolute).catch((cause: unknown) => {
    throw new Fault('NOT_FOUND', 'the parent cannot be found', { where: absolute, cause })
  })
  const path = relative(await realpath(dirname(resolve(child))), await realpath(absolute))
  const timestamp = vhdTime(found.mtimeMs)
  if (format === 'aio') {
    const size = Math.ceil(found.size / SECTOR) * SECTOR
    return { path, uuid: Buffer.alloc(16), timestamp, size }
  }
  const footer = await footerIn(absolute)
  return { path, uuid: footer.uuid, timestamp, size: footer.currentSize }
}

/** The footer of an image that can be opened, or that is served and so was. */
async function footerIn(path: string): Promise<Footer> {
  try {
    // With all folders allowed: it is the operator who names it here, not the image.
    const image = await openVhd(path, { readOnly: true, logger: SILENT, parents: ['/'] })
    await image.close()
    return image.footer
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'IN_USE') throw error
    return (await unlockedLook(path, (file) => readStructures(file, path))).footer
  }
}

function fixedImage(size: number): Piece[] {
  const footer = footerOf(size, FIXED, undefined, false)
  return [{ at: size, bytes: footerBytes(footer) }]
}

/** Footer, header, locators, table, batmap, footer. */
function sparseImage(stage: Stage, size: number, parent: Parent | undefined): Piece[] {
  const range = { least: SMALLEST_BLOCK, most: LARGEST_BLOCK }
  const blockSize = sizeSetting(stage, 'block_size', range, USUAL_BLOCK)
  const usual = Math.min(LARGEST_DISK, Math.max(4 * size, 64 * GiB), MOST_BLOCKS * blockSize)
  const most = { least: size, most: LARGEST_DISK }
  const maximum = sizeSetting(stage, 'maximum', most, Math.max(size, usual))
  const entries = blocksOf(maximum, blockSize)
  if ((blockSize & (blockSize - 1)) !== 0 || entries > MOST_BLOCKS) {
    throw new Fault('INVALID', `blocks of ${blockSize} bytes do not fit this image`, {
      where: stage.target,
      remedy: `give block_size a power of two, at least ${formatSize(maximum / MOST_BLOCKS)}`,
    })
  }
  const hasBatmap = booleanSetting(stage, 'batmap', false)
  if (hasBatmap && blockSize !== USUAL_BLOCK) {
    throw new Fault('INVALID', 'a batmap is for blocks of 2 MiB', {
      where: stage.target,
      remedy: 'leave batmap or block_size out',
    })
  }
  const footer = footerOf(size, parent === undefined ? DYNAMIC : DIFFERENCING, SECTOR, hasBatmap)
  const locators = placeLocators(parent, 3 * SECTOR)
  const tableOffset = locators.end
  const header = newHeader({
    tableOffset,
    tableEntries: entries,
    blockSize,
    parentUuid: parent?.uuid ?? Buffer.alloc(16),
    parentTimestamp: parent?.timestamp ?? 0,
    parentName: parent === undefined ? Buffer.alloc(512) : encodeParentName(parent.path),
    locators: fillLocators(locators.entries, NO_LOCATOR),
  })
  const table = Buffer.alloc(tableSize(entries), 0xff)
  const batmapAt = tableOffset + table.length
  const batmap = hasBatmap ? emptyBatmap(batmapAt, size, entries) : Buffer.alloc(0)
  const bytes = footerBytes(footer)
  return [
    { at: 0, bytes },
    { at: SECTOR, bytes: headerBytes(header) },
    ...locators.pieces,
    { at: tableOffset, bytes: table },
    { at: batmapAt, bytes: batmap },
    { at: batmapAt + batmap.length, bytes },
  ]
}

function footerOf(
  size: number,
  type: number,
  dataOffset: number | undefined,
  tapdisk: boolean,
): Footer {
  return newFooter({
    size,
    type,
    dataOffset,
    creator: tapdisk ? 'tap\0' : 'win ',
    creatorVersion: tapdisk ? 0x0001_0003 : 0x000a_0000,
    uuid: Buffer.from(randomUUID().replaceAll('-', ''), 'hex'),
    timestamp: vhdTime(Date.now()),
  })
}

/** A batmap in which nothing is set, with its header before it. */
function emptyBatmap(at: number, size: number, entries: number): Buffer {
  const all = Buffer.alloc(SECTOR + batmapSize(entries))
  const map = all.subarray(SECTOR)
  BATMAP_HEADER.write(all, 0, newBatmapHeader(at + SECTOR, map, batmapCoverage(size)))
  return all
}

/** Before the table, so that nothing is in the way of what may follow it. */
function placeLocators(
  parent: Parent | undefined,
  from: number,
): { entries: Locator[]; pieces: Piece[]; end: number } {
  const entries: Locator[] = []
  const pieces: Piece[] = []
  let end = from
  for (const { code, data } of parent === undefined ? [] : encodeLocators(parent.path)) {
    const dataSpace = Math.ceil(data.length / SECTOR) * SECTOR
    entries.push({ code, dataSpace, dataLength: data.length, reserved: 0, dataOffset: end })
    pieces.push({ at: end, bytes: data })
    end += dataSpace
  }
  return { entries, pieces, end }
}

async function writeNew(path: string, pieces: readonly Piece[]): Promise<void> {
  const handle = await createFile(path)
  try {
    for (const { at, bytes } of pieces) await writeAll(handle, bytes, at)
    await handle.sync()
    await handle.close()
  } catch (cause) {
    await handle.close().catch(() => undefined)
    await rm(path, { force: true })
    throw new Fault('IO', 'the image could not be written', { where: path, cause })
  }
}

async function createFile(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600)
  } catch (cause) {
    const { code = 'error' } = cause as NodeJS.ErrnoException
    if (code === 'EEXIST') {
      throw new Fault('IN_USE', 'there is a file of that name already', {
        where: path,
        remedy: 'choose another name, or remove it first',
      })
    }
    throw new Fault('IO', `the image cannot be created (${code})`, { where: path, cause })
  }
}

async function writeAll(handle: FileHandle, bytes: Buffer, at: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, at + done)
    done += bytesWritten
  }
}
