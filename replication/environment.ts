/** What a replication group is given of the world: time, connections, a log. A simulation gives other ones. */

import type { Timers } from '../core/clock.ts'
import type { Logger } from '../core/logger.ts'
import type { FenceOutcome, FenceRequest } from './fence-hook.ts'
import type { GroupEventSink } from './group.ts'
import type { SegmentStore } from './journal/segments.ts'
import type { Frame } from './machine/frame.ts'
import type { RegionStore } from './regions/region-store.ts'

/** One connection between a primary and a secondary: frames in order, both ways. */
export interface Link {
  readonly peer: string
  readonly closed: boolean
  send(frame: Frame): void
  /** `handed` is called once: when the kernel has the bytes, or when the link is closed. Until then the payload is the link's. */
  sendData(frame: Frame, handed: () => void): void
  /** Stops and restarts the arrival of frames; a few that are here already may still come. */
  pause(): void
  resume(): void
  /** Ends the connection after what was sent so far. No frame arrives any more. Idempotent. */
  close(reason: string): void
}

export interface LinkHandlers {
  /** A frame arrived; its payload is valid during the call only. @throws Fault to end the link */
  frame(frame: Frame): void
  /** Called once; nothing after it. */
  closed(reason: string): void
}

/** Makes one attempt to connect; exactly one of the two is called. @returns gives the attempt up */
export type Dial = (
  connected: (open: (handlers: LinkHandlers) => Link) => void,
  failed: (reason: string) => void,
) => () => void

export interface GroupEnvironment {
  readonly logger: Logger
  readonly onEvent: GroupEventSink
  /** A name that nobody else has, nor will have. */
  newId(): string
  readonly timers: Timers
  /** Where a group keeps its journal, for its exclusive use. @throws Fault when it is not to be had */
  openSegments(group: string): Promise<SegmentStore>
  /** The map of what changed of a disk, beside the group's journal. `fresh`: nothing is known to differ. @throws Fault */
  openRegions(group: string, disk: string, size: number, fresh: boolean): Promise<RegionStore>
  /** Forgets the map of a disk that is one of the group's no longer. @throws Fault */
  removeRegions(group: string, disk: string): Promise<void>
  /** Whether a group has left a journal there. */
  hasSegments(group: string): Promise<boolean>
  /** Asks the operator's program whether the other side is fenced. Never rejects. */
  fence(program: string, request: FenceRequest): Promise<FenceOutcome>
  /** Milliseconds on a clock that never goes back. */
  nowMs(): number
}

/** Calls `run` every `ms` milliseconds until the result is called. */
export function every(timers: Timers, ms: number, run: () => void): () => void {
  let cancel = timers.after(ms, again)
  function again(): void {
    cancel = timers.after(ms, again)
    run()
  }
  return () => cancel()
}
