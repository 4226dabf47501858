/** What a primary's machine is told, and what it wants done: its settings, inputs and effects. */

import type { FaultCode } from '../../core/fault.ts'
import type { CheckpointResult, GroupEvent, GroupMode } from '../group.ts'
import type { Frame } from './frame.ts'
import type { DiskIdentity, Hello, Refusal } from './handshake.ts'
import type { LivenessSettings } from './liveness.ts'

export interface PrimarySettings extends LivenessSettings {
  readonly group: string
  readonly mode: GroupMode
  readonly incarnation: string
  readonly disks: readonly DiskIdentity[]
}

export type PrimaryInput =
  | { readonly type: 'link-up'; readonly nowMs: number; readonly peer: string }
  | { readonly type: 'hello'; readonly nowMs: number; readonly hello: Hello }
  | { readonly type: 'refused'; readonly nowMs: number; readonly refusal: Refusal }
  | {
      readonly type: 'done'
      readonly nowMs: number
      readonly checkpoint: number
      readonly commitUs: number
    }
  | { readonly type: 'heartbeat'; readonly nowMs: number }
  | {
      readonly type: 'pressure'
      readonly nowMs: number
      readonly bytes: number
      readonly limit: number
    }
  | { readonly type: 'link-down'; readonly reason: string }
  | { readonly type: 'tick'; readonly nowMs: number }
  | {
      readonly type: 'checkpoint'
      readonly nowMs: number
      readonly request: number
      readonly timeoutMs: number
    }
  | { readonly type: 'set-replicating'; readonly on: boolean }
  | { readonly type: 'resynced'; readonly nowMs: number; readonly session: number }
  | { readonly type: 'disk-failed'; readonly reason: string }

export type PrimaryEffect =
  | { readonly type: 'send'; readonly frame: Frame }
  | { readonly type: 'close-link'; readonly reason: string }
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
  /** Send every block that is dirty with respect to `committed`, then give back `resynced` with the same session. */
  | { readonly type: 'resync'; readonly session: number; readonly committed: number }
  | { readonly type: 'event'; readonly event: GroupEvent }
