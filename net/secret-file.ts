/** Reading small files that decide who is trusted, some of which must be secret. */

import { constants } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'

import { Fault, asFault } from '../core/fault.ts'
import { MiB } from '../core/units.ts'

const LARGEST = 1 * MiB

/** Group members may read a secret, as a key that services share is kept; others may not, and nobody else may change it. */
const FORBIDDEN_MODE = 0o037

interface Reading {
  /** What the file is, for messages: `private key`. */
  readonly what: string
  /** Refuse a file that others than its owner and group can read. */
  readonly secret: boolean
  readonly remedy: string
}

/** @throws Fault NOT_FOUND, NOT_PERMITTED, INVALID or IO that names the file */
export async function readTrustedFile(
  path: string,
  { what, secret, remedy }: Reading,
): Promise<Buffer> {
  let file: FileHandle
  try {
    // A pipe in its place must not hold up the start.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR')
      throw new Fault('NOT_FOUND', `there is no ${what}`, { where: path, remedy, cause: error })
    throw unreadable(error, path, what)
  }
  try {
    const { mode, size } = await openedStat(file, path, what)
    if (secret && (mode & FORBIDDEN_MODE) !== 0) {
      const shown = (mode & 0o777).toString(8).padStart(4, '0')
      throw new Fault('NOT_PERMITTED', `others have access to the ${what} (mode ${shown})`, {
        where: path,
        remedy: `chmod 600 ${path}; and make it anew if somebody may have read it`,
      })
    }
    if (size > LARGEST)
      throw new Fault('INVALID', `the ${what} is too large to be one (${size} bytes)`, {
        where: path,
        remedy,
      })
    return await file.readFile()
  } catch (error) {
    throw unreadable(error, path, what)
  } finally {
    await file.close()
  }
}

async function openedStat(
  file: FileHandle,
  path: string,
  what: string,
): Promise<{ mode: number; size: number }> {
  const found = await file.stat()
  if (found.isFile()) return found
  throw new Fault('INVALID', `the ${what} is not a regular file`, {
    where: path,
    remedy: 'give the path of a file',
  })
}

function unreadable(error: unknown, path: string, what: string): Fault {
  return asFault(error, 'IO', `cannot read the ${what}`, {
    where: path,
    remedy: 'let the user that colotap runs as read it',
  })
}
