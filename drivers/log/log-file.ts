/**
 * The file of a change log: a header and the bits of a ChangeMap, meant to be whole only between a clean close and the
 * next open.
 *
 * Header (big-endian, 64 bytes): magic 8, state u32 (1 open, 2 closed), block u32, disk size u64, CRC-32 of the bits u32,
 * exact u32 (1 when the bits say what changed, 0 when they are set for want of knowledge), zeroes, CRC-32 of all before
 * u32. The bits begin at byte 4096.
 *
 * Invariants:
 *  - Before open resolves the file says `open`, durably: a crash leaves no bits that look right and are not.
 *  - A file that is something else is refused, never overwritten.
 *  - Whatever cannot be read as a closed log of this disk counts as: everything has changed.
 */

import { open, type FileHandle } from 'node:fs/promises'

import { crc32 } from '../../core/crc32.ts'
import { asFault, Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import { lockImage } from '../aio/image-lock.ts'
import { loadNative } from '../aio/native.ts'
import { bytesFor, ChangeMap } from './change-map.ts'
import type { Known } from './changes.ts'

const MAGIC = Buffer.from('CTAPLOG1')
const HEADER_SIZE = 64
const BITS_AT = 4096
const OPEN = 1
const CLOSED = 2

interface Header {
  readonly state: number
  readonly block: number
  readonly size: number
  readonly bitsCrc: number
  readonly exact: boolean
}

export class LogFile {
  readonly path: string
  readonly #handle: FileHandle

  private constructor(path: string, handle: FileHandle) {
    this.path = path
    this.#handle = handle
  }

  /** Opens or makes the file, and locks it. @throws Fault when that is not possible, or when it is no change log */
  static async open(path: string, logger: Logger): Promise<LogFile> {
    let handle: FileHandle
    try {
      handle = await open(path, 'r+').catch((error: unknown) => {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
        return open(path, 'wx+', 0o600)
      })
    } catch (error) {
      throw logFault(error, 'open', path)
    }
    try {
      const stats = await handle.stat({ bigint: true })
      if (!stats.isFile()) {
        throw new Fault('INVALID', 'a change log is kept in a regular file', { where: path })
      }
      const subject = { fd: handle.fd, path, readOnly: false, device: stats.dev, inode: stats.ino }
      await lockImage(subject, loadNative(), logger)
      const file = new LogFile(path, handle)
      await file.#refuseStrangers(Number(stats.size))
      return file
    } catch (error) {
      await handle.close()
      throw logFault(error, 'open', path)
    }
  }

  /**
   * What is known about a disk of `size` bytes; from now on the file says `open`.
   * @param block bytes of a block, or undefined to keep the file's own, `otherwise` where it has none
   */
  async load(size: number, block: number | undefined, otherwise: number): Promise<Known> {
    try {
      const loaded = await this.#read(size, block, otherwise)
      await this.#writeHeader({
        state: OPEN,
        block: loaded.map.block,
        size,
        bitsCrc: 0,
        exact: false,
      })
      return loaded
    } catch (error) {
      throw logFault(error, 'read', this.path)
    }
  }

  /** Writes what is known, durably, and closes. @throws Fault; the file still says `open` then */
  async save({ map, unknown }: Known): Promise<void> {
    try {
      const { bits, block, size } = map
      await writeAll(this.#handle, bits, BITS_AT)
      await this.#handle.truncate(BITS_AT + bits.length)
      await this.#handle.sync()
      const bitsCrc = crc32(bits)
      await this.#writeHeader({ state: CLOSED, block, size, bitsCrc, exact: unknown === undefined })
    } catch (error) {
      throw logFault(error, 'write', this.path)
    } finally {
      await this.#handle.close()
    }
  }

  /** Closes without having anything to say. */
  async abandon(): Promise<void> {
    await this.#handle.close()
  }

  async #read(size: number, block: number | undefined, otherwise: number): Promise<Known> {
    const header = await this.#header()
    const unknown = (why: string): Known => {
      const map = new ChangeMap(size, block ?? header?.block ?? otherwise)
      map.markAll()
      return { map, unknown: why }
    }
    if (header === undefined) return unknown('the log is new')
    if (header.state !== CLOSED) return unknown('the log was not closed in order')
    if (header.size !== size) return unknown('the disk had another size when the log was closed')
    const bits = Buffer.alloc(bytesFor(size, header.block))
    const { bytesRead } = await this.#handle.read(bits, 0, bits.length, BITS_AT)
    if (bytesRead !== bits.length || crc32(bits) !== header.bitsCrc) {
      return unknown('the log is damaged')
    }
    const stored = ChangeMap.of(size, header.block, bits)
    if (!header.exact) return unknown('no backup was ended since the log became unsure')
    return { map: inBlocksOf(block ?? header.block, stored), unknown: undefined }
  }

  /** Undefined where the file is new; damaged ones count as not closed. */
  async #header(): Promise<Header | undefined> {
    const bytes = Buffer.alloc(HEADER_SIZE)
    const { bytesRead } = await this.#handle.read(bytes, 0, HEADER_SIZE, 0)
    if (bytesRead === 0) return undefined
    const whole =
      bytesRead === HEADER_SIZE &&
      bytes.readUInt32BE(HEADER_SIZE - 4) === crc32(bytes.subarray(0, HEADER_SIZE - 4))
    const block = bytes.readUInt32BE(12)
    const size = Number(bytes.readBigUInt64BE(16))
    if (!whole || !isBlock(block) || !Number.isSafeInteger(size)) return undefined
    return {
      state: bytes.readUInt32BE(8),
      block,
      size,
      bitsCrc: bytes.readUInt32BE(24),
      exact: bytes.readUInt32BE(28) === 1,
    }
  }

  async #refuseStrangers(size: number): Promise<void> {
    if (size === 0) return
    const magic = Buffer.alloc(MAGIC.length)
    await this.#handle.read(magic, 0, MAGIC.length, 0)
    if (magic.equals(MAGIC)) return
    throw new Fault('INVALID', 'the file is no change log', {
      where: this.path,
      remedy: 'name a file of its own, which need not exist, for the log of each disk',
    })
  }

  async #writeHeader({ state, block, size, bitsCrc, exact }: Header): Promise<void> {
    const bytes = Buffer.alloc(HEADER_SIZE)
    MAGIC.copy(bytes)
    bytes.writeUInt32BE(state, 8)
    bytes.writeUInt32BE(block, 12)
    bytes.writeBigUInt64BE(BigInt(size), 16)
    bytes.writeUInt32BE(bitsCrc, 24)
    bytes.writeUInt32BE(exact ? 1 : 0, 28)
    bytes.writeUInt32BE(crc32(bytes.subarray(0, HEADER_SIZE - 4)), HEADER_SIZE - 4)
    await writeAll(this.#handle, bytes, 0)
    await this.#handle.sync()
  }
}

/** Powers of two from 512 bytes to 1 GiB. */
function isBlock(block: number): boolean {
  return block >= 512 && block <= 2 ** 30 && Number.isInteger(Math.log2(block))
}

function inBlocksOf(block: number, map: ChangeMap): ChangeMap {
  if (block === map.block) return map
  const other = new ChangeMap(map.size, block)
  for (let range = map.next(0); range !== undefined; range = map.next(range.at + range.length)) {
    other.mark(range.at, range.length)
  }
  return other
}

async function writeAll(handle: FileHandle, bytes: Uint8Array, at: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += (await handle.write(bytes, done, bytes.length - done, at + done)).bytesWritten
  }
}

function logFault(error: unknown, doing: string, path: string): Fault {
  return asFault(error, 'IO', `cannot ${doing} the change log`, {
    where: path,
    remedy: 'check its folder and the space there; without the log the next backup is a full one',
  })
}
