/** What a sector holds, as one number: every word of a sector that is written in a simulation is its writer's tag. */

import { SECTOR } from '../../core/units.ts'

/** The content of a disk, a number for each sector. */
export type Content = Int32Array

/** Words of a sector. */
export const WORDS = SECTOR / 4

/** Bytes of whole sectors, with a view of them as words. */
export interface SectorBuffer {
  readonly bytes: Buffer
  readonly words: Int32Array
}

export function sectorBuffer(count: number): SectorBuffer {
  const memory = new ArrayBuffer(count * SECTOR)
  return { bytes: Buffer.from(memory), words: new Int32Array(memory) }
}

/** A request of `length` sectors that writes `tag`. */
export function sectorsOf(tag: number, length: number): Buffer {
  const { bytes, words } = sectorBuffer(length)
  words.fill(tag)
  return bytes
}

/** Buffers of requests, used again and again. */
export class SectorBuffers {
  readonly #free: SectorBuffer[][] = []

  /** A buffer of `count` sectors that are all `tag`. */
  take(tag: number, count: number): SectorBuffer {
    const taken = this.#free[count]?.pop() ?? sectorBuffer(count)
    taken.words.fill(tag)
    return taken
  }

  give(buffer: SectorBuffer): void {
    ;(this.#free[buffer.words.length / WORDS] ??= []).push(buffer)
  }
}

/** @returns the tag of each sector; -1 where a sector is not of one piece */
export function contentOf(bytes: Buffer): Content {
  const content = new Int32Array(bytes.length / SECTOR)
  readTags(wordsOf(bytes), 1, content)
  return content
}

/** The same, looking at few words of each sector: for what is looked at all the time. */
export function glimpse(words: Int32Array, content: Content): void {
  readTags(words, WORDS - 1, content)
}

export function wordsOf(bytes: Buffer): Int32Array {
  return new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
}

/** Looks at every `step`th word of each sector. */
function readTags(words: Int32Array, step: number, content: Content): void {
  for (let sector = 0; sector < content.length; sector += 1) {
    const first = sector * WORDS
    const tag = words[first]!
    let found = tag
    for (let index = first + step; index < first + WORDS; index += step)
      if (words[index] !== tag) found = -1
    content[sector] = found
  }
}
