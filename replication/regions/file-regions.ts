/**
 * The map of a disk's changed regions as a file: a header, then the bitmap, each bit written in place.
 *
 * Invariant: the file is whole and durable before it gets its name, so that a crash leaves none or a good one.
 */

import { dirname, join } from 'node:path'

import { crc32 } from '../../core/crc32.ts'
import { asFault, type Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
import { isFull, NODE_FILES, type StateFile, type StateFiles } from '../state-files.ts'
import { bitmapBytes, type RegionStore } from './region-store.ts'

/** Sectors of the header: its text and a checksum. */
const HEADER = 4096
const MAGIC = 'colotap region map 1'

/** Opens the map of a disk, or makes one: empty where `fresh` says that nothing can differ, else full. @throws Fault */
export async function openFileRegions(
  folder: string,
  disk: string,
  diskSize: number,
  regionBytes: number,
  fresh: boolean,
  files: StateFiles = NODE_FILES,
): Promise<RegionStore> {
  const path = pathOf(folder, disk)
  const header = headerOf(disk, diskSize, regionBytes)
  const length = bitmapBytes(diskSize, regionBytes)
  try {
    let bitmap = fresh ? null : await read(files, path, header, length)
    if (bitmap === null) {
      const smaller = fresh ? null : await readSmaller(files, path, { disk, diskSize, regionBytes })
      bitmap = smaller ?? Buffer.alloc(length, fresh ? 0x00 : 0xff)
      await make(files, path, header, bitmap)
    }
    return new FileRegions(await files.open(path, 'change'), path, regionBytes, bitmap)
  } catch (error) {
    throw regionFault(error, 'open', path)
  }
}

class FileRegions implements RegionStore {
  readonly regionBytes: number
  readonly found: Buffer
  readonly #file: StateFile
  readonly #path: string

  constructor(file: StateFile, path: string, regionBytes: number, found: Buffer) {
    this.#file = file
    this.#path = path
    this.regionBytes = regionBytes
    this.found = found
  }

  async save(bitmap: Buffer, sectors: readonly number[]): Promise<void> {
    try {
      for (const sector of sectors) {
        const at = sector * SECTOR
        await this.#file.write([bitmap.subarray(at, at + SECTOR)], HEADER + at)
      }
      await this.#file.sync()
    } catch (error) {
      throw regionFault(error, 'write', this.#path)
    }
  }

  close(): Promise<void> {
    return this.#file.close()
  }
}

function headerOf(disk: string, size: number, regionBytes: number): Buffer {
  const header = Buffer.alloc(HEADER)
  const text = Buffer.from(JSON.stringify({ magic: MAGIC, disk, size, regionBytes }))
  text.copy(header, 8, 0, HEADER - 8)
  header.writeUInt32BE(text.length, 4)
  header.writeUInt32BE(crc32(header.subarray(4)), 0)
  return header
}

/** @returns null when there is no map, or one of another disk */
async function read(
  files: StateFiles,
  path: string,
  header: Buffer,
  length: number,
): Promise<Buffer | null> {
  const bytes = await readStart(files, path, HEADER + length)
  return bytes?.subarray(0, HEADER).equals(header) === true ? bytes.subarray(HEADER) : null
}

/** @returns null when there is no file, or a shorter one */
async function readStart(files: StateFiles, path: string, length: number): Promise<Buffer | null> {
  let file
  try {
    file = await files.open(path, 'read')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw error
  }
  try {
    const bytes = Buffer.alloc(length)
    return (await file.read(bytes, 0)) < length ? null : bytes
  } finally {
    await file.close()
  }
}

/** The map of the same disk when it was smaller, with what it gained marked. @returns null when there is none */
async function readSmaller(
  files: StateFiles,
  path: string,
  { disk, diskSize, regionBytes }: { disk: string; diskSize: number; regionBytes: number },
): Promise<Buffer | null> {
  const before = sizeIn(await readStart(files, path, HEADER))
  if (before === undefined || before >= diskSize) return null
  const header = headerOf(disk, before, regionBytes)
  const bitmap = await read(files, path, header, bitmapBytes(before, regionBytes))
  if (bitmap === null) return null
  const grown = Buffer.alloc(bitmapBytes(diskSize, regionBytes))
  bitmap.copy(grown)
  for (let region = Math.floor(before / regionBytes); region * regionBytes < diskSize; region += 1)
    grown[region >> 3] = (grown[region >> 3] ?? 0) | (1 << (region & 7))
  return grown
}

/** What a header says of the size; whether it can be trusted, read() finds out. */
function sizeIn(header: Buffer | null): number | undefined {
  if (header === null) return undefined
  const length = header.readUInt32BE(4)
  try {
    const text = header.subarray(8, 8 + Math.min(length, HEADER)).toString()
    const { size } = JSON.parse(text) as { size?: unknown }
    return Number.isSafeInteger(size) && Number(size) > 0 ? Number(size) : undefined
  } catch {
    return undefined
  }
}

/** Forgets the map of a disk that is one of the group's no longer: no crash brings it back. @throws Fault */
export async function removeFileRegions(
  folder: string,
  disk: string,
  files: StateFiles = NODE_FILES,
): Promise<void> {
  const path = pathOf(folder, disk)
  try {
    await files.remove(path)
    await files.syncNames(folder)
  } catch (error) {
    throw regionFault(error, 'remove', path)
  }
}

function pathOf(folder: string, disk: string): string {
  return join(folder, `changed-${encodeURIComponent(disk)}.map`)
}

async function make(
  files: StateFiles,
  path: string,
  header: Buffer,
  bitmap: Buffer,
): Promise<void> {
  const making = `${path}.new`
  const file = await files.open(making, 'new')
  try {
    await file.write([header, bitmap], 0)
    await file.sync()
  } finally {
    await file.close()
  }
  await files.rename(making, path)
  await files.syncNames(dirname(path))
}

function regionFault(error: unknown, verb: string, where: string): Fault {
  const remedy = 'free space there, or repair the disk; writes fail until then'
  return asFault(
    error,
    isFull(error) ? 'NO_SPACE' : 'IO',
    `cannot ${verb} the map of changed regions`,
    {
      where,
      remedy,
    },
  )
}
