/** Where spilled data is read from: the records of a journal, in all but tests. */

import type { MaybePromise } from '../core/maybe-promise.ts'

/** The data of one received write. */
export interface SpilledRecord {
  /** Where on the disk it begins. */
  readonly at: number
  readonly bytes: Buffer
}

export interface RecordSource {
  /**
   * Reads the record at `place`, with `length` bytes of data, from memory or storage, and makes sure that it is what was written there.
   * @throws Fault when it cannot be read, or is not
   */
  read(place: number, length: number): MaybePromise<SpilledRecord>
  /** Keeps the records at `place` and behind it from being removed, until what is returned is called, once. */
  pin(place: number): () => void
}
