/** Image files with known content. */

import { createCipheriv } from 'node:crypto'
import { open, readFile } from 'node:fs/promises'

const MIB = 1024 * 1024

/** `length` bytes that look random and are the same for the same seed. */
function patternBytes(length: number, seed: number): Buffer {
  const key = Buffer.alloc(32)
  key.writeUInt32LE(seed)
  return createCipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(length))
}

/** A raw image of random-looking data in which every third mebibyte is a hole; gives its content. */
export async function createSparseImage(path: string, size: number, seed = 1): Promise<Buffer> {
  const content = patternBytes(size, seed)
  const file = await open(path, 'w')
  try {
    await file.truncate(size)
    for (let at = 0; at < size; at += MIB) {
      const piece = content.subarray(at, at + MIB)
      if ((at / MIB) % 3 === 1) piece.fill(0)
      else await file.write(piece, 0, piece.length, at)
    }
  } finally {
    await file.close()
  }
  return content
}

/** A raw image that is one hole. */
export async function createEmptyImage(path: string, size: number): Promise<void> {
  const file = await open(path, 'w')
  await file.truncate(size)
  await file.close()
}

/** Where the two first differ, as a sentence; undefined when they are equal. For messages shorter than a diff. */
export function difference(actual: Buffer, expected: Buffer): string | undefined {
  if (actual.equals(expected)) return undefined
  if (actual.length !== expected.length)
    return `${actual.length} bytes instead of ${expected.length}`
  const at = actual.findIndex((byte, index) => byte !== expected[index])
  return `byte ${at} is ${actual[at] ?? 'missing'} instead of ${expected[at] ?? 'missing'}`
}

/** As difference(), for an image file. */
export async function imageDifference(path: string, expected: Buffer): Promise<string | undefined> {
  return difference(await readFile(path), expected)
}
