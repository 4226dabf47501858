/**
 * What a primary has to send over the blktap2 wire: frames, put as requests into buffers of whatever size there is.
 *
 * Invariants:
 *  - Requests leave in the order of the frames, each whole in one buffer, and no write has more than MOST_SENT bytes.
 *  - Nothing is copied before there is a buffer for it: zeroes of any extent wait as two numbers.
 *  - `handed` of each entry is called exactly once: when what contained its end was taken, or on drop().
 */

import { assert } from '../../core/assert.ts'
import type { Frame } from '../machine/frame.ts'
import { encodeWriteHeader, MOST_SENT, OP_SIZE, WRITE_HEADER_SIZE } from './wire.ts'

interface Entry {
  readonly frame: Frame
  readonly handed: (() => void) | undefined
}

export class RequestQueue {
  #entries: Entry[] = []
  /** Index of the first entry that is not filled in yet. */
  #first = 0
  /** Bytes of the first entry that are filled in. */
  #done = 0
  /** Of entries that were filled in, and not taken yet. */
  #leaving: (() => void)[] = []

  /** @param frame a write, a zero, or a checkpoint */
  add(frame: Frame, handed?: () => void): void {
    this.#entries.push({ frame, handed })
  }

  /** Puts as many whole requests as fit into `into`. @returns bytes put there */
  fill(into: Buffer): number {
    let at = 0
    for (;;) {
      const entry = this.#entries[this.#first]
      if (entry === undefined) break
      at = this.#fillFrom(entry.frame, into, at)
      if (this.#done < lengthOf(entry.frame)) break
      if (entry.handed !== undefined) this.#leaving.push(entry.handed)
      this.#first += 1
      this.#done = 0
    }
    this.#forgetFilled()
    return at
  }

  /** What was filled in so far is the kernel's. */
  taken(): void {
    const leaving = this.#leaving
    this.#leaving = []
    for (const handed of leaving) handed()
  }

  /** Nothing more will be sent. */
  drop(): void {
    const waiting = this.#entries.slice(this.#first)
    this.#entries = []
    this.#first = 0
    this.taken()
    for (const { handed } of waiting) handed?.()
  }

  #fillFrom(frame: Frame, into: Buffer, start: number): number {
    const total = lengthOf(frame)
    let at = start
    while (this.#done < total) {
      const length = Math.min(MOST_SENT, total - this.#done)
      const size = frame.type === 'checkpoint' ? OP_SIZE : WRITE_HEADER_SIZE + length
      if (at + size > into.length) break
      put(frame, this.#done, length, into, at)
      this.#done += length
      at += size
    }
    return at
  }

  /** Keeps the array short without moving it for every entry. */
  #forgetFilled(): void {
    if (this.#first < 1024 && this.#first < this.#entries.length) return
    this.#entries.splice(0, this.#first)
    this.#first = 0
  }
}

/** What is to be filled in of a frame; a checkpoint counts as 1. */
function lengthOf(frame: Frame): number {
  if (frame.type === 'write') return frame.payload.length
  return frame.type === 'zero' ? frame.extent : 1
}

/** Writes the part [done, done + length) of a frame as one request. */
function put(frame: Frame, done: number, length: number, into: Buffer, at: number): void {
  if (frame.type === 'checkpoint') {
    into.write('creq', at, 'latin1')
    return
  }
  assert(frame.type === 'write' || frame.type === 'zero', 'only these are requests')
  encodeWriteHeader(into, at, frame.position + done, length)
  const data = at + WRITE_HEADER_SIZE
  if (frame.type === 'write') frame.payload.copy(into, data, done, done + length)
  else into.fill(0, data, data + length)
}
