/**
 * The map of a disk's changed regions as a file: a header, then the bitmap, each bit written in place.
 *
 * Invariant: the file is whole and durable before it gets its name, so that a crash leaves none or a good one.
 */

import { open, rename, type FileHandle } from 'node:fs/promises'
import { dirname, join } from 'node:path'

import { crc32 } from '../../core/crc32.ts'
import { asFault, type Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
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
): Promise<RegionStore> {
  const path = join(folder, `changed-${encodeURIComponent(disk)}.map`)
  const header = headerOf(disk, diskSize, regionBytes)
  const length = bitmapBytes(diskSize, regionBytes)
  try {
    let bitmap = fresh ? null : await read(path, header, length)
    if (bitmap === null) {
      bitmap = Buffer.alloc(length, fresh ? 0x00 : 0xff)
      await make(path, header, bitmap)
    }
    return new FileRegions(await open(path, 'r+'), path, regionBytes, bitmap)
  } catch (error) {
    throw regionFault(error, 'open', path)
  }
}

class FileRegions implements RegionStore {
  readonly regionBytes: number
  readonly found: Buffer
  readonly #handle: FileHandle
  readonly #path: string

  constructor(handle: FileHandle, path: string, regionBytes: number, found: Buffer) {
    this.#handle = handle
    this.#path = path
    this.regionBytes = regionBytes
    this.found = found
  }

  async save(bitmap: Buffer, sectors: readonly number[]): Promise<void> {
    try {
      for (const sector of sectors) await this.#write(bitmap, sector * SECTOR)
      await this.#handle.datasync()
    } catch (error) {
      throw regionFault(error, 'write', this.#path)
    }
  }

  async close(): Promise<void> {
    await this.#handle.close()
  }

  async #write(bitmap: Buffer, at: number): Promise<void> {
    const { bytesWritten } = await this.#handle.write(bitmap, at, SECTOR, HEADER + at)
    if (bytesWritten !== SECTOR) throw new Error(`wrote ${bytesWritten} of ${SECTOR} bytes`)
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
async function read(path: string, header: Buffer, length: number): Promise<Buffer | null> {
  let handle
  try {
    handle = await open(path, 'r')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw error
  }
  try {
    const bytes = Buffer.alloc(HEADER + length)
    const { bytesRead } = await handle.read(bytes, 0, bytes.length, 0)
    if (bytesRead < bytes.length || !bytes.subarray(0, HEADER).equals(header)) return null
    return bytes.subarray(HEADER)
  } finally {
    await handle.close()
  }
}

async function make(path: string, header: Buffer, bitmap: Buffer): Promise<void> {
  const making = `${path}.new`
  const handle = await open(making, 'w', 0o600)
  try {
    await handle.writeFile(Buffer.concat([header, bitmap]))
    await handle.sync()
  } finally {
    await handle.close()
  }
  await rename(making, path)
  const folder = await open(dirname(path), 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

function regionFault(error: unknown, verb: string, where: string): Fault {
  const full = ['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException).code ?? '')
  const remedy = 'free space there, or repair the disk; writes fail until then'
  return asFault(error, full ? 'NO_SPACE' : 'IO', `cannot ${verb} the map of changed regions`, {
    where,
    remedy,
  })
}
