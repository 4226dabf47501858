/**
 * What a disk may hold when its writer or its server was killed: for each block the numbers of the writes that were
 * acknowledged and issued at certain moments. The disk itself is not kept: a number gives the content of its block.
 *
 * Invariants:
 *  - A block has at most one write in flight, so its numbers are a history without branches.
 *  - A number is never used twice for a block, also not after a takeover has thrown the newest ones away.
 *  - Number 0 is the empty block, and so is every write that zeroes or trims.
 */

import { crc32 } from '../../core/crc32.ts'
import { SECTOR } from '../../core/units.ts'

/** What was known at one moment: the recovered number of each block lies between the two. */
export interface Bounds {
  readonly acknowledged: Uint32Array
  readonly issued: Uint32Array
}

export class BlockHistory {
  /** Bytes; whole sectors. */
  readonly blockSize: number
  readonly blocks: number
  /** Tells blocks of this disk from those of any other one. */
  readonly #tag: number
  /** By block: the last number acknowledged and issued. */
  readonly #acknowledged: Uint32Array
  readonly #issued: Uint32Array
  /** By block: numbers above the settled one and below this one are lost for good. */
  readonly #settled: Uint32Array
  readonly #alive: Uint32Array
  /** By block: numbers that left the block empty. */
  readonly #empty = new Map<number, Set<number>>()
  readonly #zeroes: Buffer
  readonly #expected: Buffer

  constructor(blocks: number, blockSize: number, tag = 0) {
    this.blocks = blocks
    this.blockSize = blockSize
    this.#tag = tag >>> 0
    this.#acknowledged = new Uint32Array(blocks)
    this.#issued = new Uint32Array(blocks)
    this.#settled = new Uint32Array(blocks)
    this.#alive = new Uint32Array(blocks)
    this.#zeroes = Buffer.alloc(blockSize)
    this.#expected = Buffer.alloc(blockSize)
  }

  /**
   * Notes that a write to `count` idle blocks begins.
   * @returns its content; undefined when the blocks are to be emptied
   */
  issue(first: number, count: number, empties: boolean): Buffer | undefined {
    const content = empties ? undefined : Buffer.allocUnsafe(count * this.blockSize)
    for (let index = 0; index < count; index += 1) {
      const block = first + index
      const number = (this.#issued[block] ?? 0) + 1
      this.#issued[block] = number
      if (content === undefined) this.#noteEmpty(block, number)
      else this.#fill(content, index * this.blockSize, block, number)
    }
    return content
  }

  /** Whether no write to a block is in flight. */
  idle(block: number): boolean {
    return this.#issued[block] === this.#acknowledged[block]
  }

  acknowledge(first: number, count: number): void {
    for (let block = first; block < first + count; block += 1)
      this.#acknowledged[block] = this.#issued[block] ?? 0
  }

  acknowledged(): Uint32Array {
    return this.#acknowledged.slice()
  }

  issued(): Uint32Array {
    return this.#issued.slice()
  }

  /** Every block exactly as it was acknowledged, now and later: what the blocks hold to which no write is in flight. */
  get exactly(): Bounds {
    return { acknowledged: this.#acknowledged, issued: this.#acknowledged }
  }

  /** The first of the blocks in `bytes`, from `first` on, that `bounds` forbid, as a sentence; undefined when all are allowed. */
  violation(bytes: Buffer, bounds: Bounds, first = 0): string | undefined {
    for (let at = 0; at < bytes.length; at += this.blockSize) {
      const block = first + at / this.blockSize
      const found = bytes.subarray(at, at + this.blockSize)
      if (this.#numberIn(found, block, bounds) === undefined)
        return this.#complaint(found, block, bounds)
    }
    return undefined
  }

  /** Takes what `bounds` allowed and `bytes` hold, from block `first` on, for the whole truth: nothing is in flight any more. */
  settle(bytes: Buffer, bounds: Bounds, first = 0): void {
    for (let at = 0; at < bytes.length; at += this.blockSize) {
      const block = first + at / this.blockSize
      const number = this.#numberIn(bytes.subarray(at, at + this.blockSize), block, bounds)
      if (number === undefined) continue
      this.#acknowledged[block] = number
      this.#settled[block] = number
      this.#alive[block] = (this.#issued[block] ?? 0) + 1
      const empty = this.#isEmpty(block, number)
      this.#empty.delete(block)
      if (empty && number > 0) this.#noteEmpty(block, number)
    }
  }

  /** The number of the write that left `found`, if it is one of those that the bounds allow. */
  #numberIn(found: Buffer, block: number, { acknowledged, issued }: Bounds): number | undefined {
    const [least, most] = [acknowledged[block] ?? 0, issued[block] ?? 0]
    if (found.equals(this.#zeroes)) {
      for (let number = most; number >= least; number -= 1)
        if (this.#isEmpty(block, number) && this.#isAlive(block, number)) return number
      return undefined
    }
    const number = found.readUInt32BE(4)
    if (number < least || number > most || !this.#isAlive(block, number)) return undefined
    if (this.#isEmpty(block, number)) return undefined
    this.#fill(this.#expected, 0, block, number)
    return found.equals(this.#expected) ? number : undefined
  }

  #isAlive(block: number, number: number): boolean {
    return number <= (this.#settled[block] ?? 0) || number >= (this.#alive[block] ?? 0)
  }

  #isEmpty(block: number, number: number): boolean {
    return number === 0 || this.#empty.get(block)?.has(number) === true
  }

  #noteEmpty(block: number, number: number): void {
    const numbers = this.#empty.get(block)
    if (numbers === undefined) this.#empty.set(block, new Set([number]))
    else numbers.add(number)
  }

  /** Each sector says what it belongs to, so that a torn block is always seen. */
  #fill(into: Buffer, at: number, block: number, number: number): void {
    into.fill(number & 0xff, at, at + this.blockSize)
    for (let sector = at; sector < at + this.blockSize; sector += SECTOR) {
      into.writeUInt32BE(block, sector)
      into.writeUInt32BE(number, sector + 4)
      into.writeUInt32BE(this.#tag, sector + 8)
      into.writeUInt32BE(sector - at, sector + 12)
      into.writeUInt32BE(crc32(into.subarray(sector, sector + 16)), sector + SECTOR - 4)
    }
  }

  #complaint(found: Buffer, block: number, { acknowledged, issued }: Bounds): string {
    const [least, most] = [acknowledged[block] ?? 0, issued[block] ?? 0]
    const allowed = least === most ? `write ${least}` : `one of the writes ${least} to ${most}`
    return `block ${block} (${this.blockSize} bytes at ${block * this.blockSize}) holds ${this.#describe(found)}, not ${allowed}`
  }

  #describe(found: Buffer): string {
    if (found.equals(this.#zeroes)) return 'zeroes'
    const [block, number, tag] = [0, 4, 8].map((at) => found.readUInt32BE(at))
    this.#fill(this.#expected, 0, block ?? 0, number ?? 0)
    if (found.equals(this.#expected)) return `write ${number ?? 0} of block ${block ?? 0}`
    const foreign = tag === this.#tag ? 'a damaged or torn mixture' : 'something else'
    return `${foreign} (it begins with ${found.toString('hex', 0, 16)})`
  }
}
