/**
 * A replication group as the rest of colotap sees it: its status, its commands, its events.
 * The names are the control protocol's and stay as they are (docs/control.md).
 */

export type GroupMode = 'colo' | 'remus'
/** When a guest's write on a primary completes: its bytes are on their way, in the secondary's memory, in the secondary's journal. */
export const ACKS = ['sent', 'received', 'durable'] as const
export type Ack = (typeof ACKS)[number]
export type GroupRole = 'primary' | 'secondary' | 'active'
export type Protection =
  'protected' | 'unprotected' | 'connecting' | 'resyncing' | 'frozen' | 'inconsistent'

export interface DiskStatus {
  readonly name: string
  /** Bytes. */
  readonly size: number
  /** Bytes that differ, or may differ, from the last committed checkpoint. */
  readonly dirtyBytes: number
  /** `whole`: checkpoints have it. It was added, and none has yet: `new` where its content is right, `partial` where it is none. */
  readonly standing: 'whole' | 'new' | 'partial'
}

/** What the present role knows of a group. */
export interface SideStatus {
  readonly role: GroupRole
  readonly protection: Protection
  /** Why protection is what it is, when it is not `protected`; for people. */
  readonly reason: string | null
  /** Whether it can become protected again without an operator. */
  readonly heals: boolean
  /** Whether a primary has reached its secondary, which does not follow it: `reason` is what that one says. */
  readonly refused: boolean
  /** Number of the last committed checkpoint, the same on both sides. */
  readonly checkpoint: number
  readonly term: number
  /** Whether a committed checkpoint survives a crash of the secondary. */
  readonly durable: boolean
  /** The other side's address, when one is connected. */
  readonly peer: string | null
  readonly disks: readonly DiskStatus[]
}

/** Of the latest checkpoints, at most 1024, since the process began. Microseconds where not said otherwise. */
export interface CheckpointStatistics {
  /** Milliseconds since the last one. */
  readonly ageMs: number
  readonly count: number
  readonly pauseUs: { readonly p50: number; readonly p99: number }
  readonly commitUs: { readonly p50: number; readonly p99: number }
}

/** How far a copy to the secondary is. */
export interface ResyncProgress {
  /** Of `totalBytes`: sent, or found to be equal. */
  readonly sentBytes: number
  readonly totalBytes: number
  readonly bytesPerSecond: number
  /** Null while it cannot be estimated. */
  readonly secondsLeft: number | null
  /** Bytes that were compared before they were sent, if they were. */
  readonly checkedBytes: number
  /** Bytes of data that went over the link; runs of zeroes take none. */
  readonly movedBytes: number
}

/** How protection came back the last time. */
export interface Recovery {
  /** Milliseconds from the loss, or the start of the process, until the group was protected. */
  readonly unprotectedMs: number
  /** Bytes of data that a primary sent for that; null on a secondary. */
  readonly movedBytes: number | null
}

/** A range of a disk that the secondary holds differently, as far as checksums tell: at most a piece too much on each side. */
export interface DifferentRange {
  readonly disk: string
  readonly at: number
  readonly length: number
}

/** What a comparison of both sides has found, or has found so far. */
export interface VerifyReport {
  /** `unfinished`: it ended before everything was compared. */
  readonly state: 'running' | 'equal' | 'different' | 'unfinished'
  /** Why it is unfinished. */
  readonly reason: string | null
  /** Whether what differs is sent again at the end. */
  readonly repair: boolean
  readonly checkedBytes: number
  readonly totalBytes: number
  readonly bytesPerSecond: number
  /** Null while it cannot be estimated. */
  readonly secondsLeft: number | null
  readonly differentBytes: number
  /** At most 100, in order. */
  readonly ranges: readonly DifferentRange[]
  /** Pieces that are not listed. */
  readonly omittedRanges: number
}

/** Something that went wrong; stays until an operator acknowledges it, healed or not. */
export interface Alarm {
  readonly text: string
  /** How often it happened, and how many milliseconds ago for the first and the last time. */
  readonly count: number
  readonly firstAgeMs: number
  readonly lastAgeMs: number
}

export interface GroupStatus extends SideStatus {
  readonly group: string
  readonly mode: GroupMode
  /** When a guest's write completes on this side, where it is a primary. */
  readonly ack: Ack
  /** Null before the first checkpoint since the process began. */
  readonly checkpoints: CheckpointStatistics | null
  /** Null while nothing is being copied from here. */
  readonly resync: ResyncProgress | null
  /** Null before the first time in this process. */
  readonly recovery: Recovery | null
  /** The comparison under way, or the last one of this process as primary; null before. */
  readonly verify: VerifyReport | null
  /** Bytes of epochs held in memory (secondary). */
  readonly ramdiskBytes: number
  /** Bytes of epochs that are in the journal and not in memory, until the images have them (secondary). */
  readonly spilledBytes: number
  /** Bytes of journal on disk. */
  readonly journalBytes: number
  /** Whether a primary is giving up its role: no guest's write is taken any more. */
  readonly leaving: boolean
  /** What is wrong now and does not show in `protection`; goes when it has healed. */
  readonly error: string | null
  /** What went wrong since an operator acknowledged last, oldest first. */
  readonly alarms: readonly Alarm[]
}

export interface CheckpointResult {
  readonly checkpoint: number
  /** From the request to the acknowledgement: what a paused VM sees. */
  readonly pauseUs: number
  /** The part of it that the secondary needed to make the epoch its recoverable state. */
  readonly commitUs: number
  /** Payload bytes of the epoch. */
  readonly bytes: number
}

export type GroupEvent =
  | {
      readonly event: 'REPLICATION_CHECKPOINT'
      readonly data: CheckpointResult & { readonly group: string }
    }
  | {
      readonly event: 'REPLICATION_LINK'
      readonly data: {
        readonly group: string
        readonly up: boolean
        readonly peer: string | null
        readonly reason: string | null
      }
    }
  | {
      readonly event: 'REPLICATION_ROLE'
      readonly data: { readonly group: string; readonly role: GroupRole; readonly term: number }
    }
  | {
      readonly event: 'REPLICATION_PROTECTION'
      readonly data: {
        readonly group: string
        readonly protection: Protection
        readonly reason: string | null
        /** With `protected`: how it came back. */
        readonly recovery?: Recovery
      }
    }
  | {
      readonly event: 'REPLICATION_PRESSURE'
      readonly data: {
        readonly group: string
        readonly bytes: number
        readonly limit: number
        /** On a secondary: bytes of data that are in its journal only, until the images have them. */
        readonly spilledBytes?: number
      }
    }
  | {
      readonly event: 'REPLICATION_VERIFY'
      readonly data: VerifyReport & { readonly group: string }
    }
  | {
      readonly event: 'REPLICATION_ERROR'
      readonly data: { readonly group: string; readonly error: string }
    }

/** What the control plane may do with a group. Every method that fails throws a Fault. */
export interface ReplicationGroup {
  readonly name: string
  status(): GroupStatus
  /** An operator has seen the alarms. */
  acknowledge(): GroupStatus
  /**
   * Primary: ends the epoch and resolves when the secondary has committed it.
   * Secondary: resolves when the checkpoint that the primary announced is committed here.
   * @throws Fault TIMEOUT, LINK_LOST or NOT_PERMITTED when it is not known to be committed.
   */
  checkpoint(timeoutMs: number | undefined): Promise<CheckpointResult>
  /** Makes a secondary the active copy; does nothing on an active one. `force`: also while its primary is connected. */
  promote(force: boolean): Promise<GroupStatus>
  /** Makes a primary a secondary; does nothing on one. `force`: also while a secondary follows it. */
  demote(force: boolean): Promise<GroupStatus>
  /** Exchanges the roles of a protected pair, without loss and without a copy. @throws Fault as checkpoint() */
  switchover(timeoutMs: number | undefined): Promise<GroupStatus>
  /** Chooses whose changes are given up, where both sides went on alone. */
  resolveSplit(discard: 'local' | 'remote'): Promise<GroupStatus>
  /** Changes settings of a primary until it is started again. @throws Fault on a secondary */
  configure(changes: GroupChanges): GroupStatus
  /**
   * Has a primary send its disks as a whole again; `checksums`: but what the secondary has already.
   * @throws Fault on a secondary, or where the other side cannot compare
   */
  resync(checksums: boolean): Promise<GroupStatus>
  /**
   * Begins to compare a primary's disks with its secondary's; `repair`: what differs is sent again at the end. `cancel` ends it.
   * @throws Fault where there is no secondary to compare with
   */
  verify(wish: 'compare' | 'repair' | 'cancel'): GroupStatus
  /**
   * Allows or ends replication on a primary (the toolstack's start and stop).
   * @throws Fault when it is to end while this side is leaving its role
   */
  setReplicating(on: boolean): void
}

/** What may be changed while a group runs; undefined stays as it is. */
export interface GroupChanges {
  readonly ack: Ack | undefined
  readonly onLinkLoss: 'continue' | 'freeze' | undefined
  /** Milliseconds; 0: a primary makes no checkpoints by itself. */
  readonly intervalMs: number | undefined
  /** Bytes a second; 0: no limit. */
  readonly resyncRate: number | undefined
}

export type GroupEventSink = (event: GroupEvent) => void
