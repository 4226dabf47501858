/**
 * Journal segments as files of a folder that one process uses at a time.
 *
 * Invariants:
 *  - sync() covers the file's name, too.
 *  - The folder is held by a socket in it, which a crash releases and a second process finds alive.
 */

import { mkdir, open, readdir, rm, type FileHandle } from 'node:fs/promises'
import { createServer, type Server } from 'node:net'
import { join } from 'node:path'

import { asFault, type Fault } from '../../core/fault.ts'
import { listenPrivately, type PrivateSocket } from '../../net/private-socket.ts'
import type { SegmentFile, SegmentStore } from './segments.ts'

const NAME = /^journal-(\d{8,})\.seg$/

/** Opens the folder, making it where it is missing. @throws Fault IN_USE when another process has it, IO otherwise */
export async function openFileSegments(folder: string): Promise<SegmentStore> {
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw asFault(error, 'IO', 'cannot make the folder for the journal', {
      where: folder,
      remedy: 'choose one that you may write to with --state-dir',
    })
  }
  const server = createServer((socket) => socket.destroy())
  const lock = await listenPrivately(server, join(folder, 'lock'), 'lock of the journal')
  server.unref()
  return new FileSegments(folder, server, lock)
}

/** Whether a journal is there; nothing is made where none is. */
export async function hasFileSegments(folder: string): Promise<boolean> {
  try {
    return (await readdir(folder)).some((name) => NAME.test(name))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw journalFault(error, 'read', folder)
  }
}

class FileSegments implements SegmentStore {
  readonly place: string
  readonly #server: Server
  readonly #lock: PrivateSocket

  constructor(place: string, server: Server, lock: PrivateSocket) {
    this.place = place
    this.#server = server
    this.#lock = lock
  }

  list(): Promise<number[]> {
    return this.#attempt('read', async () => {
      const names = await readdir(this.place)
      return names
        .flatMap((name) => NAME.exec(name)?.[1] ?? [])
        .map(Number)
        .sort((a, b) => a - b)
    })
  }

  create(number: number): Promise<SegmentFile> {
    return this.#attempt('write', async () => {
      const handle = await open(this.#path(number), 'w', 0o600)
      return new File(handle, this)
    })
  }

  read(number: number, at: number, into: Buffer): Promise<number> {
    return this.#attempt('read', async () => {
      const handle = await open(this.#path(number), 'r')
      try {
        let done = 0
        while (done < into.length) {
          const { bytesRead } = await handle.read(into, done, into.length - done, at + done)
          if (bytesRead === 0) break
          done += bytesRead
        }
        return done
      } finally {
        await handle.close()
      }
    })
  }

  remove(number: number): Promise<void> {
    return this.#attempt('remove', async () => {
      await rm(this.#path(number), { force: true })
      // In order: a crash must not bring an older one back alone.
      await this.syncNames()
    })
  }

  async close(): Promise<void> {
    await this.#lock.unlink()
    await new Promise<void>((resolve) => this.#server.close(() => resolve()))
  }

  /** Makes the names in the folder durable. */
  async syncNames(): Promise<void> {
    const handle = await open(this.place, 'r')
    try {
      await handle.sync()
    } finally {
      await handle.close()
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

class File implements SegmentFile {
  readonly #handle: FileHandle
  readonly #store: FileSegments
  #named = false
  #length = 0

  constructor(handle: FileHandle, store: FileSegments) {
    this.#handle = handle
    this.#store = store
  }

  async append(chunks: readonly Buffer[]): Promise<void> {
    try {
      for (const chunk of chunks) {
        let done = 0
        while (done < chunk.length) {
          const { bytesWritten } = await this.#handle.write(
            chunk,
            done,
            chunk.length - done,
            this.#length + done,
          )
          done += bytesWritten
        }
        this.#length += chunk.length
      }
    } catch (error) {
      throw journalFault(error, 'write', this.#store.place)
    }
  }

  async sync(): Promise<void> {
    try {
      await this.#handle.datasync()
      if (!this.#named) await this.#store.syncNames()
      this.#named = true
    } catch (error) {
      throw journalFault(error, 'flush', this.#store.place)
    }
  }

  async close(): Promise<void> {
    try {
      await this.#handle.close()
    } catch (error) {
      throw journalFault(error, 'close', this.#store.place)
    }
  }
}

function journalFault(error: unknown, verb: string, where: string): Fault {
  const full = ['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException).code ?? '')
  return asFault(error, full ? 'NO_SPACE' : 'IO', `cannot ${verb} the journal`, { where })
}
