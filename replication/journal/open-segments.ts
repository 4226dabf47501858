/**
 * Segments that are read from, kept open: records of a spilled epoch are read one by one, in the order of the disk, and so now from
 * one segment and now from another.
 *
 * Invariants:
 *  - 20 At most MOST_OPEN files stay open. One that is being read stays so until that has ended, also when it was forgotten meanwhile.
 *  - A segment that is forgotten is not read from again by what was open before.
 */

import type { StateFile } from '../state-files.ts'

/** As many segments as the journal of a gigabyte has: beyond that, the one that was not read for longest is closed. */
const MOST_OPEN = 16

interface Opened {
  readonly file: Promise<StateFile>
  readers: number
  /** Whether the last reader closes it. */
  forgotten: boolean
}

export class OpenSegments {
  readonly #open: (segment: number) => Promise<StateFile>
  /** The one that was used last comes last. */
  readonly #opened = new Map<number, Opened>()

  constructor(open: (segment: number) => Promise<StateFile>) {
    this.#open = open
  }

  /** @returns bytes read, fewer than asked for at the end only. Fails with the error of the system */
  async read(segment: number, at: number, into: Buffer): Promise<number> {
    const opened = this.#use(segment)
    opened.readers += 1
    try {
      return await (await opened.file).read(into, at)
    } catch (error) {
      // The next one tries anew: what was open may be what is wrong.
      if (this.#opened.get(segment) === opened) this.#drop(segment, opened)
      throw error
    } finally {
      opened.readers -= 1
      if (opened.forgotten) await close(opened)
    }
  }

  /** Closes a segment: it is about to be removed or replaced. Resolves when that is done. */
  async forget(segment: number): Promise<void> {
    const opened = this.#opened.get(segment)
    if (opened === undefined) return
    this.#drop(segment, opened)
    await close(opened)
  }

  /** Closes all. */
  async close(): Promise<void> {
    await Promise.all([...this.#opened.keys()].map((segment) => this.forget(segment)))
  }

  #use(segment: number): Opened {
    const opened = this.#opened.get(segment) ?? {
      ...{ file: this.#open(segment), readers: 0, forgotten: false },
    }
    this.#opened.delete(segment)
    this.#opened.set(segment, opened)
    const [oldest] = this.#opened
    if (oldest !== undefined && this.#opened.size > MOST_OPEN) {
      this.#drop(...oldest)
      void close(oldest[1])
    }
    return opened
  }

  #drop(segment: number, opened: Opened): void {
    this.#opened.delete(segment)
    opened.forgotten = true
  }
}

/** Unless somebody reads it: then the last one does. */
async function close({ file, readers }: Opened): Promise<void> {
  if (readers > 0) return
  // It was read only: there is nothing that a failure could lose.
  await file.then((opened) => opened.close()).catch(() => undefined)
}
