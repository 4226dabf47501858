/** Where a secondary records its epochs before it calls them committed: a journal, or nowhere but memory. */

import type { Fault } from '../../core/fault.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'
import type { RecordSource } from '../../ramdisk/record-source.ts'
import type { Frame } from '../machine/frame.ts'
import type { ApartDisks } from '../machine/disk-sets.ts'
import type { DiskIdentity } from '../machine/handshake.ts'
import type { ReplicaState } from '../machine/replica-state.ts'

/** What stands apart after a change of the disks, of what stood apart before. */
export type Standing = (apart: ApartDisks) => ApartDisks

export interface EpochLog {
  /** Whether what is committed survives a crash. */
  readonly durable: boolean
  /** Why nothing can be recorded now; restart() may heal it. */
  readonly failure: Fault | undefined
  /** Bytes accepted and not yet written. */
  readonly backlog: number
  /** Grows whenever something of what was accepted is on disk. */
  readonly progress: number
  /** Bytes on disk. */
  readonly bytes: number
  restart(): Promise<void>
  /** Where what was appended can be read again; undefined where nothing is kept. */
  readonly records: RecordSource | undefined
  /**
   * Data of the epoch that is being received; its payload is the caller's again when this returns.
   * @returns its place among the records; undefined where it is not kept, and where the log has failed
   */
  append(record: Readonly<Frame>): number | undefined
  /** Resolves when everything that was appended so far is on stable storage. @throws Fault when it will not be */
  sync(): MaybePromise<void>
  /** What was appended since the last commit never happened. */
  discard(): void
  /** Remembers the state before it resolves. @throws Fault, and remembers the one before then */
  persist(state: ReplicaState): MaybePromise<void>
  /**
   * Ends the epoch: `committed` is called once it, and `state`, are recoverable, at the instant from which they stay so
   * whatever fails next. @throws Fault when they are not and never will be
   */
  commit(checkpoint: number, state: ReplicaState, committed: () => void): MaybePromise<void>
  /** Every epoch up to this one is in the disk's image: it need not be recovered. */
  flushed(disk: number, checkpoint: number): void
  /** Every epoch is in the disk's image: resolves when a crash can bring none of them back over what comes later. @throws Fault */
  retire(disk: number): MaybePromise<void>
  /**
   * The group has these disks from the next record on. @throws Fault, and the next one that can be written says so
   * @param stand what of a state's disks stands apart then: of every state that is remembered, or was queued to be
   */
  change(disks: readonly DiskIdentity[], stand: Standing): MaybePromise<void>
  /** Keeps every record that is there, and what comes, until what is returned is called: a disk that leaves may still read it. */
  keep(): () => void
  /** Calls `wake` once, when little is waiting to be written. */
  whenDrained(wake: () => void): void
  close(): Promise<void>
}

/** Commits live as long as the process. */
export const MEMORY_LOG: EpochLog = {
  durable: false,
  failure: undefined,
  backlog: 0,
  progress: 0,
  bytes: 0,
  records: undefined,
  restart: () => Promise.resolve(),
  append: () => undefined,
  sync: () => undefined,
  discard: () => undefined,
  persist: () => undefined,
  commit: (_checkpoint, _state, committed) => committed(),
  flushed: () => undefined,
  retire: () => undefined,
  change: () => undefined,
  keep: () => () => undefined,
  whenDrained: (wake) => wake(),
  close: () => Promise.resolve(),
}
