/** What a sector holds, as one number: every word of a sector that is written in a simulation is its writer's tag. */

import { SECTOR } from '../../core/units.ts'

/** The content of a disk, a number for each sector. */
export type Content = Int32Array

const WORDS = SECTOR / 4

/** A request of `length` sectors that writes `tag`. */
export function sectorsOf(tag: number, length: number): Buffer {
  const words = new Int32Array(length * WORDS).fill(tag)
  return Buffer.from(words.buffer)
}

/** @returns the tag of each sector; -1 where a sector is not of one piece */
export function contentOf(bytes: Buffer): Content {
  return tagsOf(bytes, 1)
}

/** The same, looking at few words of each sector: for what is looked at all the time. */
export function glimpseOf(bytes: Buffer): Content {
  return tagsOf(bytes, WORDS - 1)
}

function tagsOf(bytes: Buffer, step: number): Content {
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  const content = new Int32Array(bytes.length / SECTOR)
  for (let sector = 0; sector < content.length; sector += 1) {
    const first = sector * WORDS
    const tag = words[first]!
    content[sector] = tag
    for (let index = first + step; index < first + WORDS; index += step)
      if (words[index] !== tag) content[sector] = -1
  }
  return content
}
