/**
 * Which blocks of a disk may differ from the secondary's last committed checkpoint.
 *
 * Each block keeps the number of the epoch that carries its last write. A block is dirty while that number is above
 * the last committed checkpoint, so a commit clears a whole epoch by moving one number: O(1), whatever its size.
 *
 * Invariants:
 *  - A block that was written in epoch n is dirty until checkpoint n or a later one is committed (invariant 15, 16).
 *  - A block that has to be sent is dirty until it was sent as a whole, and then as if it had been written at that moment.
 *  - Memory is proportional to the regions written in part since the last commit; a region written whole takes next to
 *    none, so that discarding a large disk is cheap.
 */

import { KiB } from '../../core/units.ts'

/** In the place of an epoch: the block has to be sent, by a resync, whatever was committed meanwhile. */
export const UNSENT = 0xffff_ffff

/** Above every epoch: only what has to be sent is dirty with respect to this. */
export const SENT = UNSENT - 1

/** Bytes of disk behind one entry. */
export const DIRTY_BLOCK = 4 * KiB
const BLOCKS_PER_CHUNK = 4096

interface Chunk {
  /** Undefined while all blocks were last written in `newest`. */
  epochs: Uint32Array | undefined
  newest: number
  /** Dirty blocks with respect to `countedFor`, as long as nothing changes. */
  dirty: number
  countedFor: number
}

export class DirtyMap {
  #chunks = new Map<number, Chunk>()
  /** The keys of the chunks in ascending order, as long as none is added or removed. */
  #order: number[] | undefined

  /** Notes that [at, at + length) changes in epoch `epoch`, which is never below an earlier call's. */
  mark(at: number, length: number, epoch: number): void {
    const first = Math.floor(at / DIRTY_BLOCK)
    const last = Math.floor((at + length - 1) / DIRTY_BLOCK)
    for (let block = first; block <= last;) {
      const index = Math.floor(block / BLOCKS_PER_CHUNK)
      const base = index * BLOCKS_PER_CHUNK
      const end = Math.min(last + 1, base + BLOCKS_PER_CHUNK)
      markIn(this.#chunk(index), block - base, end - base, epoch)
      block = end
    }
  }

  /** A resync has sent the range, which consists of whole blocks, but for the end of the disk. */
  sent(at: number, length: number, epoch: number): void {
    this.#set(at, length, epoch, false)
  }

  /** What has to be sent of the range, which consists of whole blocks, need not be: it is as if it had been sent now. */
  settle(at: number, length: number, epoch: number): void {
    this.#set(at, length, epoch, true)
  }

  /** Every block of the range has to be sent. */
  needs(at: number, length: number): void {
    this.#set(at, length, UNSENT, false)
  }

  #set(at: number, length: number, epoch: number, onlyUnsent: boolean): void {
    const end = Math.ceil((at + length) / DIRTY_BLOCK)
    for (let block = Math.floor(at / DIRTY_BLOCK); block < end; block += 1) {
      const index = Math.floor(block / BLOCKS_PER_CHUNK)
      // Where nothing is dirty there is nothing to settle, and no memory to be spent on that.
      const chunk = onlyUnsent ? this.#chunks.get(index) : this.#chunk(index)
      if (chunk === undefined || (onlyUnsent && chunk.newest !== UNSENT)) continue
      const epochs = epochsOf(chunk)
      const place = block % BLOCKS_PER_CHUNK
      if (onlyUnsent && epochs[place] !== UNSENT) continue
      epochs[place] = epoch
      chunk.newest = Math.max(chunk.newest, epoch)
      chunk.countedFor = -1
    }
  }

  /** Everything that is dirty with respect to `committed` has to be sent. */
  unsend(committed: number): void {
    for (const chunk of this.#chunks.values()) {
      if (chunk.newest <= committed) continue
      chunk.newest = UNSENT
      chunk.countedFor = -1
      const { epochs } = chunk
      if (epochs === undefined) continue
      for (let block = 0; block < epochs.length; block += 1)
        if ((epochs[block] ?? 0) > committed) epochs[block] = UNSENT
    }
  }

  /** Bytes in blocks that are dirty with respect to `committed`. */
  dirtyBytes(committed: number): number {
    let blocks = 0
    for (const chunk of this.#chunks.values()) {
      if (chunk.countedFor !== committed) {
        chunk.dirty = dirtyIn(chunk, committed)
        chunk.countedFor = committed
      }
      blocks += chunk.dirty
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
    const { epochs } = chunk
    const first = epochs === undefined ? from : firstAbove(epochs, from, committed)
    if (first === -1) return undefined
    const bound = Math.min(BLOCKS_PER_CHUNK, first + Math.max(1, Math.floor(limit / DIRTY_BLOCK)))
    if (epochs === undefined) return { first, end: bound }
    let end = first + 1
    while (end < bound && (epochs[end] ?? 0) > committed) end += 1
    return { first, end }
  }

  /** The lowest chunk at or above `index`. */
  #chunkFrom(index: number): number | undefined {
    this.#order ??= [...this.#chunks.keys()].sort((a, b) => a - b)
    let [low, high] = [0, this.#order.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if ((this.#order[middle] ?? 0) < index) low = middle + 1
      else high = middle
    }
    return this.#order[low]
  }

  /** Gives back the memory of regions that a commit has made clean. */
  forget(committed: number): void {
    for (const [index, chunk] of this.#chunks) {
      if (chunk.newest === UNSENT && chunk.epochs !== undefined)
        chunk.newest = chunk.epochs.reduce((most, epoch) => Math.max(most, epoch), 0)
      if (chunk.newest > committed) continue
      this.#chunks.delete(index)
      this.#order = undefined
    }
  }

  /** Bytes of memory, roughly. */
  get memory(): number {
    let blocks = 0
    for (const { epochs } of this.#chunks.values()) blocks += epochs?.length ?? 0
    return blocks * 4
  }

  #chunk(index: number): Chunk {
    let chunk = this.#chunks.get(index)
    if (chunk === undefined) {
      chunk = { epochs: undefined, newest: 0, dirty: 0, countedFor: 0 }
      this.#chunks.set(index, chunk)
      this.#order = undefined
    }
    return chunk
  }
}

function markIn(chunk: Chunk, first: number, end: number, epoch: number): void {
  chunk.countedFor = -1
  if (chunk.newest !== UNSENT) {
    if (end - first === BLOCKS_PER_CHUNK) chunk.epochs = undefined
    else epochsOf(chunk).fill(epoch, first, end)
    chunk.newest = epoch
    return
  }
  // A write may cover a block in part: what has to be sent of it still has to be.
  const { epochs } = chunk
  if (epochs === undefined) return
  for (let block = first; block < end; block += 1)
    if (epochs[block] !== UNSENT) epochs[block] = epoch
}

/** The epoch of each block, for writing to some of them. */
function epochsOf(chunk: Chunk): Uint32Array {
  chunk.epochs ??= new Uint32Array(BLOCKS_PER_CHUNK).fill(chunk.newest)
  return chunk.epochs
}

function dirtyIn({ epochs, newest }: Chunk, committed: number): number {
  if (newest <= committed) return 0
  if (epochs === undefined) return BLOCKS_PER_CHUNK
  let blocks = 0
  for (const epoch of epochs) if (epoch > committed) blocks += 1
  return blocks
}

function firstAbove(epochs: Uint32Array, from: number, committed: number): number {
  for (let index = from; index < epochs.length; index += 1)
    if ((epochs[index] ?? 0) > committed) return index
  return -1
}
