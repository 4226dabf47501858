/**
 * The disk on which a simulated secondary keeps its journal. It outlives processes; what was not flushed when one
 * crashes may be there, or not, or in part, and so may the file itself.
 */

import { Fault } from '../../core/fault.ts'
import type { SegmentFile, SegmentStore } from '../../replication/journal/segments.ts'
import { FRAME_TYPES, HEADER_SIZE } from '../../replication/machine/frame.ts'
import type { Random } from './random.ts'
import type { Life, Scheduler } from './scheduler.ts'

/** Shares of requests that fail, and the longest that one takes. */
export interface JournalConduct {
  failures: number
  slowestMs: number
}

interface File {
  /** Flushed. */
  readonly durable: Buffer[]
  /** Appended and not flushed, oldest first. */
  cached: Buffer[]
  /** Whether its name is flushed. */
  named: boolean
}

/** The type of a checkpoint record. */
const CHECKPOINT = FRAME_TYPES.checkpoint

interface World {
  readonly scheduler: Scheduler
  readonly random: Random
}

export class JournalDisk {
  readonly files = new Map<number, File>()
  /** The segment that was removed last: what was durable in it has reached the images since. */
  removed: File | undefined
  /** The oracle is looking: reads answer at once. */
  probing = false
  readonly conduct: JournalConduct = { failures: 0, slowestMs: 1 }
  /** Whether any request was ever made to fail. */
  hasFailed = false
  /** Checkpoints whose records were flushed. */
  readonly commits = new Set<number>()
  readonly #world: World

  constructor(world: World) {
    this.#world = world
  }

  /** The disk as a process of this life sees it. */
  open(life: Life): SegmentStore {
    const perform = <T>(what: string, done: () => T): Promise<T> => this.#perform(life, what, done)
    return {
      place: 'virtual journal',
      list: () => perform('list', () => [...this.files.keys()].sort((a, b) => a - b)),
      create: (number) =>
        perform('create', () => {
          const file: File = { durable: [], cached: [], named: false }
          this.files.set(number, file)
          return this.#file(file, life)
        }),
      read: (number, at, into) => {
        const look = (): number => this.#look(number, at, into)
        return this.probing ? look() : perform('read', look)
      },
      remove: (number) =>
        perform('remove', () => {
          this.removed = this.files.get(number) ?? this.removed
          this.files.delete(number)
        }),
      close: () => Promise.resolve(),
    }
  }

  #look(number: number, at: number, into: Buffer): number {
    const file = this.files.get(number)
    if (file === undefined) throw new Fault('NOT_FOUND', 'no such segment')
    let [chunkAt, have] = [0, 0]
    for (const chunks of [file.durable, file.cached])
      for (const chunk of chunks) {
        if (have === into.length) return have
        if (at + have < chunkAt + chunk.length) have += chunk.copy(into, have, at + have - chunkAt)
        chunkAt += chunk.length
      }
    return have
  }

  /** The process is gone, and the power with it. */
  crash(): void {
    const { random } = this.#world
    for (const [number, file] of [...this.files]) {
      if (!file.named && random.chance(0.3)) {
        this.files.delete(number)
        continue
      }
      file.named = true
      const kept = file.cached.map((chunk) => this.#remnantOf(chunk))
      while (kept.length > 0 && random.chance(0.3)) kept.pop()
      file.durable.push(...kept)
      file.cached = []
    }
  }

  /** What a crash leaves of bytes that were not flushed; blocks that were not written read as zeroes. */
  #remnantOf(chunk: Buffer): Buffer {
    const { random } = this.#world
    const remnant = Buffer.from(chunk)
    if (random.chance(0.4)) return remnant
    const block = random.pick([1, 64, 512, 4096])
    for (let at = 0; at < remnant.length; at += block)
      if (random.chance(0.3)) remnant.fill(0, at, Math.min(at + block, remnant.length))
    return random.chance(0.5) ? remnant : remnant.subarray(0, random.whole(0, remnant.length))
  }

  #file(file: File, life: Life): SegmentFile {
    return {
      append: (chunks) => {
        // The buffers are used again as soon as this resolves, and a crash may come before.
        const bytes = Buffer.concat(chunks)
        file.cached.push(bytes)
        return this.#perform(
          life,
          'append',
          () => undefined,
          () => {
            // A write that failed may have reached the disk in part.
            file.cached.splice(file.cached.indexOf(bytes), 1, this.#remnantOf(bytes))
          },
        )
      },
      sync: () => {
        const count = file.cached.length
        return this.#perform(life, 'sync', () => {
          const flushed = file.cached.splice(0, count)
          file.durable.push(...flushed)
          for (const records of flushed) this.#findCommits(records)
          file.named = true
        })
      },
      close: () => Promise.resolve(),
    }
  }

  /** Looks for checkpoint records among whole ones, by the layout in docs/decisions/0006-journal-of-frames.md. */
  #findCommits(records: Buffer): void {
    for (let at = 0; at + HEADER_SIZE <= records.length;) {
      if (records[at + 6] === CHECKPOINT) this.commits.add(Number(records.readBigUInt64BE(at + 8)))
      at += HEADER_SIZE + records.readUInt32BE(at + 24)
    }
  }

  #perform<T>(
    life: Life,
    what: string,
    done: () => T,
    failed: () => void = () => undefined,
  ): Promise<T> {
    const { scheduler, random } = this.#world
    const fails = what !== 'list' && random.chance(this.conduct.failures)
    return new Promise((resolve, reject) => {
      scheduler.after(random.delay(0, this.conduct.slowestMs), life, `journal ${what}`, () => {
        if (fails) {
          this.hasFailed = true
          failed()
          reject(new Fault('IO', `injected failure of journal ${what}`))
          return
        }
        try {
          resolve(done())
        } catch (error) {
          reject(error instanceof Error ? error : new Error(String(error)))
        }
      })
    })
  }
}
