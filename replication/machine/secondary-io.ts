/** What a secondary's machine is told, and what it wants done: its settings, inputs and effects. */

import type { FaultCode } from '../../core/fault.ts'
import type { CheckpointResult, GroupEvent, GroupMode } from '../group.ts'
import type { CongestionSign } from './congestion.ts'
import type { Frame } from './frame.ts'
import type { DiskIdentity, Hello } from './handshake.ts'
import type { LivenessSettings } from './liveness.ts'
import type { ReplicaState } from './replica-state.ts'

export interface SecondarySettings extends LivenessSettings {
  readonly group: string
  readonly mode: GroupMode
  /** Of what this side remembers. */
  readonly replica: string
  readonly disks: readonly DiskIdentity[]
  /** Bytes of epochs that may be held in memory. */
  readonly capacity: number
  /** Whether what is committed survives a crash. */
  readonly durable: boolean
  readonly remembered: ReplicaState
  /** Somebody knows whether the other side is fenced: then this side takes over by itself. */
  readonly fences: boolean
}

/** Connections are numbered by the shell: a primary may come back on a new one before the old one is known to be dead. */
export type SecondaryInput =
  | {
      readonly type: 'hello'
      readonly nowMs: number
      readonly link: number
      readonly peer: string
      readonly hello: Hello
    }
  | {
      readonly type: 'checkpoint'
      readonly nowMs: number
      readonly link: number
      readonly checkpoint: number
      /** It ends a part of a copy. */
      readonly partial: boolean
      /** A command on the primary asked for it. */
      readonly asked: boolean
    }
  /** The primary has sent everything: this side is protected. */
  | { readonly type: 'synced'; readonly nowMs: number; readonly link: number }
  /** The primary has one more disk, and its number for it. */
  | {
      readonly type: 'offer'
      readonly nowMs: number
      readonly link: number
      readonly disk: DiskIdentity & { readonly number: number }
    }
  /** The primary has a disk no longer; has sent all of it. */
  | {
      readonly type: 'withdraw' | 'complete'
      readonly nowMs: number
      readonly link: number
      readonly number: number
    }
  /** The group has one more disk here, one less, or a larger one. */
  | { readonly type: 'disk-added'; readonly disk: DiskIdentity }
  | { readonly type: 'disk-removed'; readonly name: string }
  | { readonly type: 'disk-grown'; readonly disk: DiskIdentity }
  | { readonly type: 'heartbeat'; readonly nowMs: number; readonly link: number }
  | { readonly type: 'committed'; readonly checkpoint: number; readonly commitUs: number }
  /** Nothing can be recorded for now: what is not committed is lost. */
  | { readonly type: 'log-failed'; readonly reason: string }
  | { readonly type: 'log-restarted' }
  | { readonly type: 'remembered' }
  | { readonly type: 'remember-failed'; readonly reason: string }
  | ({
      readonly type: 'held'
      /** Of memory that epochs take, and of data that is in the journal instead. */
      readonly bytes: number
      readonly spilledBytes: number
    } & CongestionSign)
  /** There is no room for more of the epoch, and none to be awaited. `localBytes`: what the guests here hold of it. */
  /** There is no room for an epoch, and none to be awaited. `lack`: in what, for people. */
  | { readonly type: 'overflow'; readonly lack: string }
  | { readonly type: 'link-down'; readonly link: number; readonly reason: string }
  | { readonly type: 'tick'; readonly nowMs: number }
  | {
      readonly type: 'promote'
      readonly request: number
      readonly force: boolean
      /** The line that begins if it works. */
      readonly generation: string
    }
  /** The answer to `fence`. */
  | { readonly type: 'fenced'; readonly fenced: boolean; readonly generation: string }
  /** The primary has become a secondary at this checkpoint, and leaves its role to this side. */
  | {
      readonly type: 'handover'
      readonly link: number
      readonly checkpoint: number
      readonly generation: string
    }
  /** Whose changes an operator gives up where the two sides have parted. */
  | { readonly type: 'discard'; readonly whose: 'local' | 'remote' }
  | {
      readonly type: 'await-checkpoint'
      readonly nowMs: number
      readonly request: number
      readonly timeoutMs: number
    }
  | { readonly type: 'set-replicating'; readonly on: boolean }
  /** Nothing will be heard of commits that were begun: the server is being shut down. */
  | { readonly type: 'ended' }

export type SecondaryEffect =
  | { readonly type: 'send'; readonly link: number; readonly frame: Frame }
  | { readonly type: 'close-link'; readonly link: number; readonly reason: string }
  /** Forget what was received since the last checkpoint. */
  | { readonly type: 'discard' }
  /** Ask whether the other side is fenced, then give back `fenced`. */
  | { readonly type: 'fence'; readonly peer: string }
  /** Tell the primary of every range that was changed here, then that this was all. */
  | { readonly type: 'tell-changes'; readonly link: number }
  /**
   * Make what was received, and `state`, the recoverable state of every disk at once; give back `committed`, in order, or
   * `log-failed`.
   */
  | { readonly type: 'commit'; readonly checkpoint: number; readonly state: ReplicaState }
  /** What was changed here is of no account any more: every disk is what the primary sent, up to these bytes, by disk. */
  | { readonly type: 'forget-changes'; readonly ends: readonly number[] }
  /** Make the log work again, then give back `log-restarted` or `log-failed`. */
  | { readonly type: 'restart-log' }
  /** Remember this, then give back `remembered` or `remember-failed`. */
  | { readonly type: 'remember'; readonly state: ReplicaState }
  /** Serve: the last checkpoint, and with COLO the guest's own writes on it. */
  | { readonly type: 'activate' }
  | { readonly type: 'promoted'; readonly request: number }
  | { readonly type: 'promote-refused'; readonly request: number; readonly reason: string }
  | {
      readonly type: 'checkpoint-done'
      readonly request: number
      readonly result: CheckpointResult
    }
  | {
      readonly type: 'checkpoint-failed'
      readonly request: number
      readonly code: FaultCode
      readonly reason: string
    }
  | { readonly type: 'event'; readonly event: GroupEvent }
