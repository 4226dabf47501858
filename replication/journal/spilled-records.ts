/**
 * Reads records of a journal back: data of epochs that the memory does not hold.
 *
 * Invariants:
 *  - What is returned is a whole write record with the checksum that it was written with, or a Fault.
 *  - A record is read only when it is in its file, and a segment with records that are being read is not removed.
 *  - 20 A bounded number of records is being read at a time; the others wait.
 */

import { assert } from '../../core/assert.ts'
import { Fault } from '../../core/fault.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { MiB } from '../../core/units.ts'
import type { RecordSource, SpilledRecord } from '../../ramdisk/record-source.ts'
import { decodeFrame, frame, HEADER_SIZE } from '../machine/frame.ts'
import type { SegmentStore } from './segments.ts'

/** A place is a segment and the offset in it, as one number: the journal's segments are shorter than this. */
const SPAN = 128 * MiB
/** Records that are being read at a time: 16 MiB at most. */
const MOST_READS = 64

/** What the journal does for those who read it. */
export interface SpilledRecordsContext {
  readonly store: SegmentStore
  /** Resolves when all that was accepted is in its file. @throws Fault when it never will be */
  readonly written: () => Promise<void>
  /** Keeps a segment until what is returned is called. */
  readonly pin: (segment: number) => () => void
}

export class SpilledRecords implements RecordSource {
  readonly #context: SpilledRecordsContext
  /** Places below this one are in their files. */
  #writtenTo: number
  #reading = 0
  #waiting: (() => void)[] = []

  /** @param firstSegment the first one that this process writes */
  constructor(firstSegment: number, context: SpilledRecordsContext) {
    this.#context = context
    this.#writtenTo = placeOf(firstSegment, 0)
  }

  /** So much of a new segment, and all of those before, is in its file. */
  begun(segment: number, bytes: number): void {
    this.#writtenTo = placeOf(segment, bytes)
  }

  /** So many bytes more of that segment are. */
  wrote(bytes: number): void {
    this.#writtenTo += bytes
  }

  pin(place: number): () => void {
    return this.#context.pin(Math.floor(place / SPAN))
  }

  read(place: number, length: number): MaybePromise<SpilledRecord> {
    if (place >= this.#writtenTo)
      return this.#context.written().then(() => this.#inTurn(place, length))
    return this.#inTurn(place, length)
  }

  #inTurn(place: number, length: number): MaybePromise<SpilledRecord> {
    if (this.#reading >= MOST_READS)
      return new Promise<void>((resolve) => this.#waiting.push(resolve)).then(() =>
        this.#inTurn(place, length),
      )
    const bytes = Buffer.allocUnsafeSlow(HEADER_SIZE + length)
    const read = this.#context.store.read(Math.floor(place / SPAN), place % SPAN, bytes)
    if (!isPromise(read)) return this.#checked(place, bytes, read)
    this.#reading += 1
    const ended = (): void => {
      this.#reading -= 1
      this.#waiting.shift()?.()
    }
    return read.finally(ended).then((have) => this.#checked(place, bytes, have))
  }

  #checked(place: number, bytes: Buffer, have: number): SpilledRecord {
    const record = frame('heartbeat')
    try {
      const behind = decodeFrame(bytes, 0, have, record)
      if (behind === bytes.length && record.type === 'write')
        return { at: record.position, bytes: record.payload }
    } catch (error) {
      if (!(error instanceof Fault)) throw error
    }
    const segment = Math.floor(place / SPAN)
    throw new Fault('IO', `segment ${segment} of the journal is damaged at ${place % SPAN}`, {
      where: this.#context.store.place,
      remedy:
        'a committed checkpoint cannot reach the image: start this side anew from a copy of the primary, with this folder moved away',
    })
  }
}

export function placeOf(segment: number, offset: number): number {
  assert(offset < SPAN, 'a segment is shorter than the span of places')
  return segment * SPAN + offset
}
