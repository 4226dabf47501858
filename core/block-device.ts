/**
 * The driver contract: what every block device in a pipeline is.
 *
 * Rules that hold for every implementation:
 *  - A request that can finish at once returns undefined; one that cannot returns a promise. Failure is a thrown or
 *    rejected Fault, never old data with success.
 *  - The caller owns the buffer. The callee may use it until the request completes and never after.
 *  - The guard (drivers/guard.ts) at the top of a pipeline has checked range, alignment, size and read-only;
 *    below it these are assertions.
 *  - Requests may overlap in time; the order of two overlapping requests in flight together is not defined.
 *  - flush() covers every request that completed before it was issued, whoever issued them.
 */

import type { ChangeLog } from './change-log.ts'
import type { MaybePromise } from './maybe-promise.ts'

/** Request flags, combined with `|`. */
export const FUA = 1 // on stable storage before the request completes
export const NO_HOLE = 2 // zero: keep the space allocated
export const FAST_ZERO = 4 // zero: fail with NOT_SUPPORTED at once rather than be as slow as a write
export type RequestFlags = number

export interface Geometry {
  /** Bytes. Any number: an odd tail is served. */
  readonly size: number
  /** Bytes; `min` is 1 where any alignment is served, `max` the largest read or write that one request may carry. */
  readonly block: { readonly min: number; readonly preferred: number; readonly max: number }
  readonly readOnly: boolean
  readonly rotational: boolean
}

export interface Capabilities {
  readonly flush: boolean
  readonly fua: boolean
  readonly trim: boolean
  readonly zero: boolean
  readonly fastZero: boolean
  readonly status: boolean
  readonly resize: boolean
  readonly cache: boolean
}

/** data: read it; hole: unallocated, reads as zeroes; zero: allocated, reads as zeroes. */
export type ExtentKind = 'data' | 'hole' | 'zero'

export interface Extent {
  readonly at: number
  readonly length: number
  readonly kind: ExtentKind
}

/** A stretch of the disk, and what a map says of it. */
export interface MapExtent {
  readonly at: number
  readonly length: number
  readonly value: number
}

/** Extents that tile the range from `at`, in order, whatever its alignment; may stop early but covers at least one byte. */
export type BlockMap = (at: number, length: number) => MaybePromise<MapExtent[]>

/** What some devices know of their blocks beyond status(). */
export interface BlockMaps {
  /** 1: changed since the last checkpoint, or possibly so; 0: not changed. */
  readonly dirty?: BlockMap
  /** The layer of a backing chain that the content comes from: 1 is the topmost; 0: from none, it reads as zeroes. */
  readonly depth?: BlockMap
}

export interface BlockDevice {
  /** May change after resize(): read it anew for each request. */
  readonly geometry: Geometry
  readonly can: Capabilities
  /** Where changes are logged for backups. */
  readonly changeLog?: ChangeLog | undefined
  /** Fills all of `into` from byte offset `at`. */
  read(into: Buffer, at: number): MaybePromise<void>
  write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void>
  /** The range reads as zeroes afterwards. */
  zero(at: number, length: number, flags: RequestFlags): MaybePromise<void>
  /** The range's content is no longer needed; what it reads as afterwards is the driver's choice, but stable. */
  trim(at: number, length: number, flags: RequestFlags): MaybePromise<void>
  /** Every request completed before this call is on stable storage when it resolves. */
  flush(): MaybePromise<void>
  /** Extents that tile the range from `at`, in order; may stop early but covers at least one byte. */
  status(at: number, length: number): MaybePromise<Extent[]>
  /** Prepares to read the range soon; changes nothing else. There wherever `can.cache` says so. */
  cache?(at: number, length: number): MaybePromise<void>
  /** The same maps from open to close. A layer that moves no blocks passes on those of the device below. */
  readonly maps?: BlockMaps | undefined
  /** New size in bytes. */
  resize(size: number): Promise<void>
  /**
   * close() comes soon: requests that are held back without need (by a rate limit, or by a connection that may come
   * back) go on or fail now, and later ones are not held back any more. What has no such waits leaves it out.
   */
  stopWaiting?(): void
  /** Ends every use; waits for requests in flight; idempotent. */
  close(): Promise<void>
}
