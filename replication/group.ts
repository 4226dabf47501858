/**
 * A replication group as the rest of colotap sees it: its status, its commands, its events.
 * The names are the control protocol's and stay as they are (docs/control.md).
 */

export type GroupMode = 'colo' | 'remus'
export type GroupRole = 'primary' | 'secondary' | 'active'
export type Protection =
  'protected' | 'unprotected' | 'connecting' | 'resyncing' | 'frozen' | 'inconsistent'

export interface DiskStatus {
  readonly name: string
  /** Bytes. */
  readonly size: number
  /** Bytes that differ, or may differ, from the last committed checkpoint. */
  readonly dirtyBytes: number
}

export interface GroupStatus {
  readonly group: string
  readonly mode: GroupMode
  readonly role: GroupRole
  readonly protection: Protection
  /** Why protection is what it is, when it is not `protected`; for people. */
  readonly reason: string | null
  /** Whether it can become protected again without an operator. */
  readonly heals: boolean
  /** Number of the last committed checkpoint, the same on both sides. */
  readonly checkpoint: number
  readonly term: number
  /** Whether a committed checkpoint survives a crash of the secondary. */
  readonly durable: boolean
  /** The other side's address, when one is connected. */
  readonly peer: string | null
  readonly disks: readonly DiskStatus[]
  /** Bytes of epochs held in memory (secondary). */
  readonly ramdiskBytes: number
  /** Bytes of journal on disk (secondary). */
  readonly journalBytes: number
  /** What is wrong now and does not show in `protection`; goes when it has healed. */
  readonly error: string | null
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
      }
    }
  | {
      readonly event: 'REPLICATION_PRESSURE'
      readonly data: { readonly group: string; readonly bytes: number; readonly limit: number }
    }
  | {
      readonly event: 'REPLICATION_ERROR'
      readonly data: { readonly group: string; readonly error: string }
    }

/** What the control plane may do with a group. Every method that fails throws a Fault. */
export interface ReplicationGroup {
  readonly name: string
  status(): GroupStatus
  /**
   * Primary: ends the epoch and resolves when the secondary has committed it.
   * Secondary: resolves when the checkpoint that the primary announced is committed here.
   * @throws Fault TIMEOUT, LINK_LOST or NOT_PERMITTED when it is not known to be committed.
   */
  checkpoint(timeoutMs: number | undefined): Promise<CheckpointResult>
  /** Makes a secondary the active copy; does nothing on an active one. `force`: also while its primary is connected. */
  promote(force: boolean): Promise<GroupStatus>
  /** Allows or ends replication on a primary (the toolstack's start and stop). */
  setReplicating(on: boolean): void
}

export type GroupEventSink = (event: GroupEvent) => void
