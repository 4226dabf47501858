/**
 * Reads that leave out what reads as zeroes: holes become chunks of their own, without their bytes.
 *
 * Looking for holes costs a question to the device. One that answers it at once is asked before every read that is large
 * enough to gain by it; one that has to look on the disk, only before reads that take much longer than that.
 *
 * Invariants:
 *  - The chunks tile the request; a byte that is not read was reported by the device as reading as zeroes, after the
 *    request had come.
 *  - A read of few or no holes is not split: it is answered in one piece, as without this file.
 */

import type { BlockDevice, Extent } from '../core/block-device.ts'
import { isPromise, then, type MaybePromise } from '../core/maybe-promise.ts'
import { KiB, MiB } from '../core/units.ts'
import { NBD_REPLY_FLAG_DONE } from './protocol.ts'
import { holeChunk, writeDataChunkHeader, type Asked, type ChunkFormat } from './reply-format.ts'

/** A part of a read, at `from` bytes from its start. */
export interface Piece {
  readonly from: number
  readonly length: number
  readonly hole: boolean
}

/** Reads at least this long, in bytes, are worth the question: where it is answered at once, and where not. */
const WORTH_A_LOOK = 64 * KiB
const WORTH_A_WAIT = 1 * MiB
/** Shorter holes, in bytes, are read with the data around them. */
const SHORTEST_HOLE = 4 * KiB
const MOST_PIECES = 32

export class SparseReader {
  readonly #device: BlockDevice
  /** Grows for good once the device has had to look. */
  #from: number

  constructor(device: BlockDevice) {
    this.#device = device
    this.#from = device.can.status ? WORTH_A_LOOK : Infinity
  }

  /** Whether holes are to be looked for in a read of so many bytes. */
  worthALook(length: number): boolean {
    return length >= this.#from
  }

  /** Reads the data into `into`; gives the pieces, or undefined when all of it was read. @throws Fault of the device */
  read(into: Buffer, at: number): MaybePromise<Piece[] | undefined> {
    const status = this.#device.status(at, into.length)
    if (isPromise(status)) this.#from = WORTH_A_WAIT
    return then(status, (extents) => {
      const pieces = piecesOf(extents, at, into.length)
      if (pieces === undefined) return then(this.#device.read(into, at), () => undefined)
      return this.#readPieces(pieces, 0, into, at)
    })
  }

  #readPieces(pieces: Piece[], start: number, into: Buffer, at: number): MaybePromise<Piece[]> {
    for (let index = start; index < pieces.length; index += 1) {
      const { from, length, hole } = pieces[index] as Piece
      if (hole) continue
      const read = this.#device.read(into.subarray(from, from + length), at + from)
      if (isPromise(read)) return read.then(() => this.#readPieces(pieces, index + 1, into, at))
    }
    return pieces
  }
}

/** The holes of a range and the data between them; undefined when it is better read as a whole. */
function piecesOf(extents: readonly Extent[], at: number, length: number): Piece[] | undefined {
  const pieces: Piece[] = []
  let from = 0
  const add = (end: number, hole: boolean): void => {
    const last = pieces.at(-1)
    if (last?.hole === hole) pieces[pieces.length - 1] = { ...last, length: end - last.from }
    else pieces.push({ from, length: end - from, hole })
    from = end
  }
  for (const extent of extents) {
    const end = Math.min(extent.at + extent.length - at, length)
    if (end <= from) break
    add(end, extent.kind !== 'data' && extent.length >= SHORTEST_HOLE)
  }
  // A device may stop early; what it does not speak of is read.
  if (from < length) add(length, false)
  return pieces.some(({ hole }) => hole) && pieces.length <= MOST_PIECES ? pieces : undefined
}

/** The chunks of a sparse read, whose data is in `data`. */
export function chunksOf(
  format: ChunkFormat,
  asked: Asked,
  at: number,
  data: Buffer,
  pieces: readonly Piece[],
): Buffer[] {
  const chunks: Buffer[] = []
  pieces.forEach(({ from, length, hole }, index) => {
    const flags = index === pieces.length - 1 ? NBD_REPLY_FLAG_DONE : 0
    if (hole) {
      chunks.push(holeChunk(format, flags, asked, at + from, length))
    } else {
      const header = Buffer.allocUnsafe(format.dataHeaderSize)
      writeDataChunkHeader(format, header, 0, flags, asked, at + from, length)
      chunks.push(header, data.subarray(from, from + length))
    }
  })
  return chunks
}
