/**
 * Which blocks of a disk may differ from the secondary's last committed checkpoint.
 *
 * Each block keeps the number of the epoch that carries its last write. A block is dirty while that number is above
 * the last committed checkpoint, so a commit clears a whole epoch by moving one number: O(1), whatever its size.
 *
 * Invariants:
 *  - A block that was written in epoch n is dirty until checkpoint n or a later one is committed (invariant 15, 16).
 *  - Memory is proportional to the regions written since the last commit, not to the disk.
 */

import { KiB } from '../../core/units.ts'

/** Bytes of disk behind one entry. */
export const DIRTY_BLOCK = 4 * KiB
const BLOCKS_PER_CHUNK = 4096
const CHUNK = DIRTY_BLOCK * BLOCKS_PER_CHUNK

interface Chunk {
  readonly epochs: Uint32Array
  newest: number
}

export class DirtyMap {
  #chunks = new Map<number, Chunk>()

  /** Notes that [at, at + length) changes in epoch `epoch`, which is never below an earlier call's. */
  mark(at: number, length: number, epoch: number): void {
    const first = Math.floor(at / DIRTY_BLOCK)
    const last = Math.floor((at + length - 1) / DIRTY_BLOCK)
    for (let block = first; block <= last;) {
      const index = Math.floor(block / BLOCKS_PER_CHUNK)
      const chunk = this.#chunk(index)
      const base = index * BLOCKS_PER_CHUNK
      const end = Math.min(last + 1, base + BLOCKS_PER_CHUNK)
      chunk.epochs.fill(epoch, block - base, end - base)
      chunk.newest = epoch
      block = end
    }
  }

  /** Bytes in blocks that are dirty with respect to `committed`. */
  dirtyBytes(committed: number): number {
    let blocks = 0
    for (const { epochs, newest } of this.#chunks.values()) {
      if (newest <= committed) continue
      for (const epoch of epochs) if (epoch > committed) blocks += 1
    }
    return blocks * DIRTY_BLOCK
  }

  /**
   * The first run of dirty blocks at or after byte `from`, at most `limit` bytes long, or undefined at the end.
   * `length` may reach beyond the disk's end in the last block.
   */
  nextDirty(
    from: number,
    limit: number,
    committed: number,
  ): { at: number; length: number } | undefined {
    let start = Math.floor(from / DIRTY_BLOCK)
    let index: number | undefined = Math.floor(start / BLOCKS_PER_CHUNK)
    while (index !== undefined) {
      const base: number = index * BLOCKS_PER_CHUNK
      const run = this.#runIn(index, Math.max(0, start - base), limit, committed)
      if (run !== undefined) {
        return { at: (base + run.first) * DIRTY_BLOCK, length: (run.end - run.first) * DIRTY_BLOCK }
      }
      start = base + BLOCKS_PER_CHUNK
      index = this.#chunkFrom(index + 1)
    }
    return undefined
  }

  #runIn(
    index: number,
    from: number,
    limit: number,
    committed: number,
  ): { first: number; end: number } | undefined {
    const chunk = this.#chunks.get(index)
    if (chunk === undefined || chunk.newest <= committed) return undefined
    const first = firstAbove(chunk.epochs, from, committed)
    if (first === -1) return undefined
    const bound = Math.min(BLOCKS_PER_CHUNK, first + Math.max(1, Math.floor(limit / DIRTY_BLOCK)))
    let end = first + 1
    while (end < bound && (chunk.epochs[end] ?? 0) > committed) end += 1
    return { first, end }
  }

  /** The lowest chunk at or above `index`. */
  #chunkFrom(index: number): number | undefined {
    let lowest: number | undefined
    for (const candidate of this.#chunks.keys()) {
      if (candidate >= index && (lowest === undefined || candidate < lowest)) lowest = candidate
    }
    return lowest
  }

  /** Gives back the memory of regions that a commit has made clean. */
  forget(committed: number): void {
    for (const [index, chunk] of this.#chunks)
      if (chunk.newest <= committed) this.#chunks.delete(index)
  }

  /** Bytes of memory, roughly. */
  get memory(): number {
    return (this.#chunks.size * CHUNK * 4) / DIRTY_BLOCK
  }

  #chunk(index: number): Chunk {
    let chunk = this.#chunks.get(index)
    if (chunk === undefined) {
      chunk = { epochs: new Uint32Array(BLOCKS_PER_CHUNK), newest: 0 }
      this.#chunks.set(index, chunk)
    }
    return chunk
  }
}

function firstAbove(epochs: Uint32Array, from: number, committed: number): number {
  for (let index = from; index < epochs.length; index += 1)
    if ((epochs[index] ?? 0) > committed) return index
  return -1
}
