/**
 * Opening an image: what it is, whether it can be served, and the descriptor, locked.
 *
 * Invariants:
 *  - Nothing that could block or start something (a FIFO, a terminal) is ever opened: the type is looked at first, and
 *    once more on the open descriptor.
 *  - When openImage() fails, no descriptor and no lock is left.
 *  - Only what is read and never written is opened without a lock.
 */

import { constants, type BigIntStats } from 'node:fs'
import { open, readFile, stat, type FileHandle } from 'node:fs/promises'

import { assert } from '../../core/assert.ts'
import { Fault, type FaultCode } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import { SECTOR } from '../../core/units.ts'
import { deviceMajor, deviceMinor, lockImage } from './image-lock.ts'
import { systemFault } from './io-fault.ts'
import type { Native } from './native.ts'

export interface ImageOptions {
  readonly path: string
  readonly readOnly: boolean
  /** Bypass the page cache (O_DIRECT). */
  readonly direct: boolean
  /** Keep others away (image-lock.ts), and stay away from what they have. */
  readonly locked: boolean
  readonly native: Native | undefined
  readonly logger: Logger
}

export interface OpenImage {
  readonly handle: FileHandle
  readonly size: number
  readonly readOnly: boolean
  /** Logical block size in bytes of a block device, 0 for a file. */
  readonly logicalBlock: number
  /** O_DIRECT's alignment in bytes, 0 where the page cache serves. */
  readonly directAlignment: number
  readonly rotational: boolean
  /** A block device that can forget blocks. */
  readonly discards: boolean
  /** A block device that can zero blocks without being sent zeroes. */
  readonly zeroesFast: boolean
}

/** Enough for every device whose block size is not known better. */
const SAFE_ALIGNMENT = 4096

export async function openImage(options: ImageOptions): Promise<OpenImage> {
  const { path } = options
  assert(options.locked || options.readOnly, 'what is written is locked')
  refuseOddTypes(await look(path), path)
  const handle = await openDescriptor(options)
  try {
    const stats = await handle.stat({ bigint: true })
    refuseOddTypes(stats, path)
    const { locked, logger, native, readOnly } = options
    const subject = { fd: handle.fd, path, readOnly, device: stats.dev, inode: stats.ino }
    if (locked) await lockImage(subject, native, logger)
    return { handle, readOnly, ...(await measure(stats, options)) }
  } catch (error) {
    await handle.close()
    throw error
  }
}

async function look(path: string): Promise<BigIntStats> {
  try {
    return await stat(path, { bigint: true })
  } catch (error) {
    throw openFault(error, path)
  }
}

function refuseOddTypes(stats: BigIntStats, path: string): void {
  if (stats.isFile() || stats.isBlockDevice()) return
  const kind = stats.isDirectory()
    ? 'a directory'
    : stats.isFIFO()
      ? 'a FIFO'
      : stats.isSocket()
        ? 'a socket'
        : 'a character device'
  throw new Fault('INVALID', `the image is ${kind}`, {
    where: path,
    remedy: 'name a regular file or a block device',
  })
}

async function openDescriptor({
  path,
  readOnly,
  direct,
  native,
}: ImageOptions): Promise<FileHandle> {
  if (direct && native === undefined) {
    throw new Fault('NOT_SUPPORTED', 'direct=on needs native calls, which are not available here', {
      where: path,
      remedy: 'install the koffi package for this machine, or leave direct off',
    })
  }
  const block = (await look(path)).isBlockDevice()
  const flags =
    (readOnly ? constants.O_RDONLY : constants.O_RDWR) |
    constants.O_NONBLOCK | // never wait in open(), whatever the path has become meanwhile
    (direct ? constants.O_DIRECT : 0) |
    (block && !readOnly ? constants.O_EXCL : 0) // refuses a device that is mounted
  try {
    return await open(path, flags)
  } catch (error) {
    if (direct && (error as NodeJS.ErrnoException).code === 'EINVAL') {
      throw new Fault('NOT_SUPPORTED', 'the file system does not support direct=on', {
        where: path,
        remedy: 'leave direct off, or move the image',
        cause: error,
      })
    }
    throw openFault(error, path)
  }
}

function openFault(error: unknown, path: string): Fault {
  const { code = '', errno = 0 } = error as NodeJS.ErrnoException
  const known = OPEN_FAULTS[code]
  if (known === undefined) return systemFault(errno, 'open the image', path)
  return new Fault(known.code, known.what, {
    where: path,
    remedy: known.remedy.replace('PATH', () => path),
    cause: error,
  })
}

const OPEN_FAULTS: Readonly<Record<string, { code: FaultCode; what: string; remedy: string }>> = {
  ENOENT: {
    code: 'NOT_FOUND',
    what: 'the image does not exist',
    remedy: 'create it: truncate -s 10G PATH',
  },
  ENOTDIR: {
    code: 'NOT_FOUND',
    what: 'a part of the path of the image is no directory',
    remedy: 'correct the path',
  },
  EBUSY: {
    code: 'IN_USE',
    what: 'the block device is mounted or in use by the kernel',
    remedy: 'unmount it first',
  },
  ETXTBSY: {
    code: 'IN_USE',
    what: 'the file is being executed or used as swap space',
    remedy: 'end that use first',
  },
}

type Measured = Omit<OpenImage, 'handle' | 'readOnly'>

async function measure(stats: BigIntStats, { path, direct }: ImageOptions): Promise<Measured> {
  const block = stats.isBlockDevice()
  const device = block ? stats.rdev : stats.dev
  const folder = `/sys/dev/block/${deviceMajor(device)}:${deviceMinor(device)}`
  const size = block ? ((await numberIn(`${folder}/size`)) ?? 0) * SECTOR : Number(stats.size)
  if (size === 0) {
    throw new Fault('INVALID', block ? 'the block device has no medium' : 'the image is empty', {
      where: path,
      remedy: block ? 'attach a medium first' : `give it a size: truncate -s 10G ${path}`,
    })
  }
  const logical = (await queue(folder, 'logical_block_size')) ?? SAFE_ALIGNMENT
  // A file's alignment may be coarser than its device's sectors; its file system's block is always enough.
  const directAlignment = direct ? (block ? logical : SAFE_ALIGNMENT) : 0
  if (direct && size % directAlignment !== 0) {
    throw new Fault('INVALID', `direct=on cannot serve a size of ${size} bytes`, {
      where: path,
      remedy: `make the size a multiple of ${directAlignment} bytes, or leave direct off`,
    })
  }
  return {
    size,
    logicalBlock: block ? logical : 0,
    directAlignment,
    rotational: (await queue(folder, 'rotational')) === 1,
    discards: block && ((await queue(folder, 'discard_max_bytes')) ?? 0) > 0,
    zeroesFast: block && ((await queue(folder, 'write_zeroes_max_bytes')) ?? 0) > 0,
  }
}

/** A property of the device's queue; a partition has its disk's. */
async function queue(folder: string, property: string): Promise<number | undefined> {
  return (
    (await numberIn(`${folder}/queue/${property}`)) ??
    (await numberIn(`${folder}/../queue/${property}`))
  )
}

async function numberIn(path: string): Promise<number | undefined> {
  try {
    const number = Number(await readFile(path, 'utf8'))
    return Number.isSafeInteger(number) ? number : undefined
  } catch {
    return undefined
  }
}
