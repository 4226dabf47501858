/**
 * Parts of a disk whose data lies in records elsewhere, as they were when somebody asked for them: what is written to the
 * epoch, flushed or forgotten later does not change what is read.
 *
 * Invariant: each record is read once for all the pieces of it, and a few are read at a time, whatever their number.
 */

import { Fault } from '../core/fault.ts'
import { isPromise, then, together, type MaybePromise } from '../core/maybe-promise.ts'
import type { RecordSource, SpilledRecord } from './record-source.ts'

/** A run of sectors that one record has. */
export interface SpilledPiece {
  readonly at: number
  readonly length: number
  /** The record: its place, and the bytes of data in it. */
  readonly place: number
  readonly recordLength: number
}

/** Records read at a time for one request. */
const READS_IN_FLIGHT = 4

/** Data that was found in a spilled epoch for one read, and stays readable until the read has ended. */
export class SpilledLoan {
  readonly #source: RecordSource
  readonly #pieces: readonly SpilledPiece[]
  /** Lets the records go. */
  readonly end: () => void

  constructor(source: RecordSource, pieces: readonly SpilledPiece[], end: () => void) {
    this.#source = source
    this.#pieces = pieces
    this.end = end
  }

  fill(into: Buffer, at: number): MaybePromise<void> {
    return fillPieces(this.#source, this.#pieces, into, at)
  }
}

/** Fills the pieces of `into`, which begins at `at` of the disk. @throws Fault when a record cannot be had as it was written */
export function fillPieces(
  source: RecordSource,
  pieces: readonly SpilledPiece[],
  into: Buffer,
  at: number,
): MaybePromise<void> {
  const byRecord = new Map<number, SpilledPiece[]>()
  for (const piece of pieces) {
    const same = byRecord.get(piece.place)
    if (same === undefined) byRecord.set(piece.place, [piece])
    else same.push(piece)
  }
  const queue: Iterator<readonly SpilledPiece[], undefined> = byRecord.values()
  return together(Math.min(READS_IN_FLIGHT, byRecord.size), () => readOn(source, queue, into, at))
}

/** Reads one record after the other until there is none that nobody reads. */
function readOn(
  source: RecordSource,
  queue: Iterator<readonly SpilledPiece[], undefined>,
  into: Buffer,
  at: number,
): MaybePromise<void> {
  for (let { value } = queue.next(); value !== undefined; { value } = queue.next()) {
    const filled = fillFrom(source, value, into, at)
    if (isPromise(filled)) return filled.then(() => readOn(source, queue, into, at))
  }
}

/** Fills the pieces of one record. */
function fillFrom(
  source: RecordSource,
  pieces: readonly SpilledPiece[],
  into: Buffer,
  at: number,
): MaybePromise<void> {
  const [first] = pieces
  if (first === undefined) return
  return then(source.read(first.place, first.recordLength), (record) => {
    for (const piece of pieces) copyPiece(record, piece, into, at)
  })
}

function copyPiece(record: SpilledRecord, piece: SpilledPiece, into: Buffer, at: number): void {
  const start = piece.at - record.at
  if (start < 0 || start + piece.length > record.bytes.length)
    throw new Fault('IO', `the record of ${piece.length} bytes at ${piece.at} is another one`)
  record.bytes.copy(into, piece.at - at, start, start + piece.length)
}
