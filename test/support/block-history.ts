/**
 * What a disk may hold when its writer was killed: for each block the numbers of the writes that were acknowledged and
 * issued at certain moments.
 *
 * Invariant: a block has at most one write in flight, so its numbers are a history without branches. Number 0 is the
 * empty block, and so is every write that zeroes or trims.
 */

import { crc32 } from '../../core/crc32.ts'

/** What was known at one moment: the recovered number of each block lies between the two. */
export interface Bounds {
  readonly acknowledged: Uint32Array
  readonly issued: Uint32Array
}

export class BlockHistory {
  readonly blockSize: number
  readonly blocks: number
  /** By block: the last number acknowledged and issued. */
  readonly #acknowledged: Uint32Array
  readonly #issued: Uint32Array
  /** By block: numbers that left the block empty. */
  readonly #empty: Set<number>[]

  constructor(blocks: number, blockSize: number) {
    this.blocks = blocks
    this.blockSize = blockSize
    this.#acknowledged = new Uint32Array(blocks)
    this.#issued = new Uint32Array(blocks)
    this.#empty = Array.from({ length: blocks }, () => new Set([0]))
  }

  idle(block: number): boolean {
    return this.#issued[block] === this.#acknowledged[block]
  }

  /** Notes that a write to an idle block begins. @returns its content; undefined when the block is to be emptied */
  issue(block: number, empties: boolean): Buffer | undefined {
    const number = (this.#issued[block] ?? 0) + 1
    this.#issued[block] = number
    if (!empties) return blockContent(this.blockSize, block, number)
    this.#empty[block]?.add(number)
    return undefined
  }

  acknowledge(block: number): void {
    this.#acknowledged[block] = this.#issued[block] ?? 0
  }

  acknowledged(): Uint32Array {
    return this.#acknowledged.slice()
  }

  issued(): Uint32Array {
    return this.#issued.slice()
  }

  /** The first block of `disk` that `bounds` forbid, as a sentence; undefined when all are allowed. */
  violation(disk: Buffer, { acknowledged, issued }: Bounds): string | undefined {
    for (let block = 0; block < this.blocks; block += 1) {
      const found = disk.subarray(block * this.blockSize, (block + 1) * this.blockSize)
      const [least, most] = [acknowledged[block] ?? 0, issued[block] ?? 0]
      if (!this.#allowed(found, block, least, most)) {
        return `block ${block} holds ${describe(found)}, not one of the writes ${least} to ${most}`
      }
    }
    return undefined
  }

  #allowed(found: Buffer, block: number, least: number, most: number): boolean {
    for (let number = least; number <= most; number += 1) {
      const expected =
        this.#empty[block]?.has(number) === true
          ? Buffer.alloc(this.blockSize)
          : blockContent(this.blockSize, block, number)
      if (found.equals(expected)) return true
    }
    return false
  }
}

function blockContent(size: number, block: number, number: number): Buffer {
  const content = Buffer.alloc(size, number & 0xff)
  content.writeUInt32BE(block, 0)
  content.writeUInt32BE(number, 4)
  content.writeUInt32BE(crc32(content.subarray(0, 8)), size - 4)
  return content
}

function describe(found: Buffer): string {
  if (found.every((byte) => byte === 0)) return 'zeroes'
  return `number ${found.readUInt32BE(4)} of block ${found.readUInt32BE(0)}`
}
