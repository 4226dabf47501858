/**
 * Checksums of what a disk holds: a SHA-256 of each piece of a range. Guests choose the content of their disks, so nothing less
 * than a cryptographic hash tells that two pieces are equal.
 *
 * Invariant: the event loop gets its turn after each range: groups and guests never wait for more than one of a summer's.
 */

import { createHash } from 'node:crypto'

import type { Timers } from '../../core/clock.ts'
import { KiB } from '../../core/units.ts'

/** Bytes under one checksum; the last piece of a range may be shorter. */
export const SUM_BLOCK = 16 * KiB
/** Bytes of a checksum. */
export const SUM_SIZE = 32

const ZEROES = Buffer.alloc(SUM_BLOCK)
const SUM_OF_ZEROES = sumOf(ZEROES)

/** Computes checksums for one side of a group, one range in a turn of the event loop. */
export class Summer {
  readonly #timers: Timers
  #last: Promise<void> = Promise.resolve()

  constructor(timers: Timers) {
    this.#timers = timers
  }

  /** @returns the checksums of the pieces of `content`, one after the other */
  async sums(content: Buffer): Promise<Buffer> {
    const before = this.#last
    let ended = (): void => undefined
    this.#last = new Promise((resolve) => {
      ended = resolve
    })
    await before
    const sums = sumsOf(content)
    this.#timers.after(0, ended)
    return sums
  }
}

export function sumsOf(content: Buffer): Buffer {
  const pieces = Math.ceil(content.length / SUM_BLOCK)
  const sums = Buffer.allocUnsafe(pieces * SUM_SIZE)
  for (let piece = 0; piece < pieces; piece += 1) {
    const bytes = content.subarray(piece * SUM_BLOCK, (piece + 1) * SUM_BLOCK)
    // Most of many disks is empty, and to compare is much faster than to hash.
    const sum = bytes.equals(ZEROES) ? SUM_OF_ZEROES : sumOf(bytes)
    sum.copy(sums, piece * SUM_SIZE)
  }
  return sums
}

function sumOf(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest()
}
