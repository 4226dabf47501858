/**
 * Journal segments as files of a folder that one process uses at a time.
 *
 * Invariants:
 *  - sync() covers the file's name, too, and every folder on the way to it that was made for it.
 *  - The folder is held by a socket in it, which a crash releases and a second process finds alive.
 */

import { createServer } from 'node:net'
import { join } from 'node:path'

import { asFault, type Fault } from '../../core/fault.ts'
import { listenPrivately } from '../../net/private-socket.ts'
import {
  isFull,
  makeLastingFolder,
  NODE_FILES,
  type StateFile,
  type StateFiles,
} from '../state-files.ts'
import { OpenSegments } from './open-segments.ts'
import type { SegmentFile, SegmentStore } from './segments.ts'

const NAME = /^journal-(\d{8,})\.seg$/

/** Takes the exclusive use of a folder; who has it gives it back by the function. @throws Fault IN_USE */
export type FolderLock = (folder: string) => Promise<() => Promise<void>>

/** Opens the folder, making it where it is missing. @throws Fault IN_USE when another process has it, IO otherwise */
export async function openFileSegments(
  folder: string,
  files: StateFiles = NODE_FILES,
  lock: FolderLock = lockBySocket,
): Promise<SegmentStore> {
  try {
    await makeLastingFolder(files, folder)
  } catch (error) {
    throw asFault(error, 'IO', 'cannot make the folder for the journal', {
      where: folder,
      remedy: 'choose one that you may write to with --state-dir',
    })
  }
  return new FileSegments(folder, files, await lock(folder))
}

/** Whether a journal is there; nothing is made where none is. */
export async function hasFileSegments(folder: string, files = NODE_FILES): Promise<boolean> {
  try {
    return (await files.list(folder)).some((name) => NAME.test(name))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw journalFault(error, 'read', folder)
  }
}

async function lockBySocket(folder: string): Promise<() => Promise<void>> {
  const server = createServer((socket) => socket.destroy())
  const socket = await listenPrivately(server, join(folder, 'lock'), 'lock of the journal')
  server.unref()
  return async () => {
    await socket.unlink()
    await new Promise<void>((resolve) => server.close(() => resolve()))
  }
}

class FileSegments implements SegmentStore {
  readonly place: string
  readonly #files: StateFiles
  readonly #unlock: () => Promise<void>
  readonly #reading = new OpenSegments((number) => this.#files.open(this.#path(number), 'read'))

  constructor(place: string, files: StateFiles, unlock: () => Promise<void>) {
    this.place = place
    this.#files = files
    this.#unlock = unlock
  }

  list(): Promise<number[]> {
    return this.#attempt('read', async () => {
      const names = await this.#files.list(this.place)
      return names
        .flatMap((name) => NAME.exec(name)?.[1] ?? [])
        .map(Number)
        .sort((a, b) => a - b)
    })
  }

  create(number: number): Promise<SegmentFile> {
    return this.#attempt('write', async () => {
      await this.#reading.forget(number)
      const file = await this.#files.open(this.#path(number), 'new')
      return new Segment(file, this)
    })
  }

  read(number: number, at: number, into: Buffer): Promise<number> {
    return this.#attempt('read', () => this.#reading.read(number, at, into))
  }

  remove(number: number): Promise<void> {
    return this.#attempt('remove', async () => {
      await this.#reading.forget(number)
      const file = await this.#present(number)
      try {
        await this.#files.remove(this.#path(number))
        // In order: a crash must not bring an older one back alone, nor one with less in it.
        await this.syncNames()
        // A commit may wait for its turn on the disk, and on the processor: not for all of this.
        await file?.empty()
      } finally {
        await file?.close()
      }
    })
  }

  async close(): Promise<void> {
    await this.#reading.close()
    await this.#unlock()
  }

  /** Makes the names in the folder durable. */
  syncNames(): Promise<void> {
    return this.#files.syncNames(this.place)
  }

  /** @returns undefined where there is no such file */
  async #present(number: number): Promise<StateFile | undefined> {
    try {
      return await this.#files.open(this.#path(number), 'change')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
  }

  #path(number: number): string {
    return join(this.place, `journal-${String(number).padStart(8, '0')}.seg`)
  }

  async #attempt<T>(verb: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (error) {
      throw journalFault(error, verb, this.place)
    }
  }
}

class Segment implements SegmentFile {
  readonly #file: StateFile
  readonly #store: FileSegments
  #named = false
  #length = 0

  constructor(file: StateFile, store: FileSegments) {
    this.#file = file
    this.#store = store
  }

  async append(chunks: readonly Buffer[]): Promise<void> {
    try {
      await this.#file.write(chunks, this.#length)
      this.#length += chunks.reduce((sum, { length }) => sum + length, 0)
    } catch (error) {
      throw journalFault(error, 'write', this.#store.place)
    }
  }

  async sync(): Promise<void> {
    try {
      await this.#file.sync()
      if (!this.#named) await this.#store.syncNames()
      this.#named = true
    } catch (error) {
      throw journalFault(error, 'flush', this.#store.place)
    }
  }

  async close(): Promise<void> {
    try {
      await this.#file.close()
    } catch (error) {
      throw journalFault(error, 'close', this.#store.place)
    }
  }
}

function journalFault(error: unknown, verb: string, where: string): Fault {
  const full = isFull(error)
  const mend = full ? 'free space there' : 'repair the disk'
  return asFault(error, full ? 'NO_SPACE' : 'IO', `cannot ${verb} the journal`, {
    where,
    remedy: `${mend}: no checkpoint is taken until then`,
  })
}
