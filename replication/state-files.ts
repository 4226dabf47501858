/**
 * What the journal and the maps of changed regions ask of the file system below them: little enough that a test can be one
 * whose power fails after any of these calls.
 *
 * A name and what it names survive a crash independently of each other: a file that is synced may have lost its name, and
 * one that has its name may be empty.
 */

import { mkdir, open, readdir, rename, rm, stat, type FileHandle } from 'node:fs/promises'
import { dirname } from 'node:path'

import { MiB } from '../core/units.ts'

/** Bytes that are given back in one call: for each MiB the system takes a processor away from everybody else for a good part of a millisecond. */
const BIT = 2 * MiB

export interface StateFile {
  /** @returns bytes read, fewer than asked for at the end only */
  read(into: Buffer, at: number): Promise<number>
  /** Writes all of it, one chunk behind the other, or fails. */
  write(chunks: readonly Buffer[], at: number): Promise<void>
  /** Resolves when what was written, and the length, survive a crash. */
  sync(): Promise<void>
  /** Gives its space back, bit by bit; what of it survives a crash is anything. */
  empty(): Promise<void>
  close(): Promise<void>
}

/** `new`: empty, whatever has the name; `read` and `change`: as it is. */
export type Opening = 'new' | 'read' | 'change'

/** Every call fails with the error of the system. */
export interface StateFiles {
  isFolder(path: string): Promise<boolean>
  /** The folder above is there. */
  makeFolder(path: string): Promise<void>
  /** Names in a folder. */
  list(folder: string): Promise<string[]>
  open(path: string, how: Opening): Promise<StateFile>
  /** Within a folder; replaces what has the name. */
  rename(from: string, to: string): Promise<void>
  /** Does nothing where there is no such file. */
  remove(path: string): Promise<void>
  /** Resolves when the names in a folder survive a crash as they are now. */
  syncNames(folder: string): Promise<void>
}

/** The system's own, read and written by nobody else. */
export const NODE_FILES: StateFiles = {
  isFolder: async (path) => {
    try {
      return (await stat(path)).isDirectory()
    } catch {
      return false
    }
  },
  makeFolder: async (path) => {
    // Recursive: no error where somebody else was faster.
    await mkdir(path, { recursive: true, mode: 0o700 })
  },
  list: (folder) => readdir(folder),
  open: async (path, how) => new NodeFile(await open(path, FLAGS[how], 0o600)),
  rename,
  remove: (path) => rm(path, { force: true }),
  syncNames: async (folder) => {
    const handle = await open(folder, 'r')
    try {
      await handle.sync()
    } finally {
      await handle.close()
    }
  },
}

const FLAGS = { new: 'w', read: 'r', change: 'r+' } as const

class NodeFile implements StateFile {
  readonly #handle: FileHandle

  constructor(handle: FileHandle) {
    this.#handle = handle
  }

  async read(into: Buffer, at: number): Promise<number> {
    let done = 0
    while (done < into.length) {
      const { bytesRead } = await this.#handle.read(into, done, into.length - done, at + done)
      if (bytesRead === 0) break
      done += bytesRead
    }
    return done
  }

  async write(chunks: readonly Buffer[], at: number): Promise<void> {
    let end = at
    // All in one call: the event loop may be busy receiving for milliseconds before it comes back here.
    for (let rest = chunks; rest.length > 0;) {
      const { bytesWritten } = await this.#handle.writev(rest, end)
      end += bytesWritten
      rest = behind(rest, bytesWritten)
    }
  }

  sync(): Promise<void> {
    return this.#handle.datasync()
  }

  async empty(): Promise<void> {
    for (let { size } = await this.#handle.stat(); size > 0;) {
      size = Math.max(0, size - BIT)
      await this.#handle.truncate(size)
    }
  }

  close(): Promise<void> {
    return this.#handle.close()
  }
}

/** Makes a folder, and those above it that are missing, so that no crash takes it away with what will be in it. */
export async function makeLastingFolder(files: StateFiles, folder: string): Promise<void> {
  const above = dirname(folder)
  const isThere = await files.isFolder(folder)
  if (!isThere) {
    await makeLastingFolder(files, above)
    await files.makeFolder(folder)
  }
  try {
    // Also of one that was there: who made it may have been killed at this point.
    await files.syncNames(above)
  } catch (error) {
    // Where one may not look, or a file system has no such thing, it was made by others, and long ago.
    if (!isThere || (error as NodeJS.ErrnoException).code === 'EIO') throw error
  }
}

/** Whether an error of the system says that there is no space left, or none that one may use. */
export function isFull(error: unknown): boolean {
  return ['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException).code ?? '')
}

/** What is left of the chunks behind their first `count` bytes. */
function behind(chunks: readonly Buffer[], count: number): Buffer[] {
  let skipped = 0
  return chunks.flatMap((chunk) => {
    const skip = Math.min(Math.max(count - skipped, 0), chunk.length)
    skipped += chunk.length
    return skip === chunk.length ? [] : [chunk.subarray(skip)]
  })
}
