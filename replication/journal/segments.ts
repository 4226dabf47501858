/** Where a journal keeps its segments: numbered files that only grow. A simulation has one that crashes. */

import type { MaybePromise } from '../../core/maybe-promise.ts'

export interface SegmentFile {
  /** Adds the chunks at the end, in order. The chunks are the file's until it resolves. @throws Fault NO_SPACE or IO */
  append(chunks: readonly Buffer[]): Promise<void>
  /** Resolves when everything appended, and the file itself, survives a crash. @throws Fault IO */
  sync(): Promise<void>
  close(): Promise<void>
}

export interface SegmentStore {
  /** For messages: where the segments are. */
  readonly place: string
  /** Ascending. */
  list(): Promise<number[]>
  /** An empty segment; one of that number that was begun and never counted is replaced. @throws Fault NO_SPACE or IO */
  create(number: number): Promise<SegmentFile>
  /** Fills `into` from `at` on. @returns bytes read, fewer than asked for at the end only */
  read(number: number, at: number, into: Buffer): MaybePromise<number>
  remove(number: number): Promise<void>
  /** Gives up the exclusive use of the place. */
  close(): Promise<void>
}
