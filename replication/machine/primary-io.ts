/** What a primary's machine is told, and what it wants done: its settings, inputs and effects. */

import type { FaultCode } from '../../core/fault.ts'
import type { Ack, CheckpointResult, GroupEvent, GroupMode } from '../group.ts'
import type { Frame } from './frame.ts'
import type { DiskIdentity, Hello, Refusal } from './handshake.ts'
import type { LivenessSettings } from './liveness.ts'
import type { ReplicaState } from './replica-state.ts'
import type { ResyncSettings } from './resync-terms.ts'

export interface PrimarySettings extends LivenessSettings, ResyncSettings {
  readonly group: string
  readonly mode: GroupMode
  /** Of what this side remembers. */
  readonly replica: string
  readonly remembered: ReplicaState
  /** Whether another replica may hold the remembered line. */
  readonly shared: boolean
  readonly disks: readonly DiskIdentity[]
  /** A secondary that knows nothing begins with the same content. */
  readonly identical: boolean
  readonly onLinkLoss: 'continue' | 'freeze'
  /** Somebody is asked, before the guest may write without a secondary, whether the other side is fenced. */
  readonly fences: boolean
  /** Milliseconds between checkpoints that the primary makes by itself; 0: it makes none. */
  readonly intervalMs: number
  /** What the secondary has to have of a guest's write before it completes. */
  readonly ack: Ack
}

export type PrimaryInput =
  | { readonly type: 'link-up'; readonly nowMs: number; readonly peer: string }
  | { readonly type: 'hello'; readonly nowMs: number; readonly hello: Hello }
  | { readonly type: 'refused'; readonly nowMs: number; readonly refusal: Refusal }
  /** The secondary changed a range by itself. */
  | {
      readonly type: 'changed'
      readonly nowMs: number
      readonly disk: number
      readonly at: number
      readonly length: number
    }
  /** The secondary has told all that it changed. */
  | { readonly type: 'ready'; readonly nowMs: number }
  /** Another primary connects to this side. */
  | { readonly type: 'called'; readonly hello: Hello }
  /** A guest is about to write while no secondary follows: a new line begins. */
  | { readonly type: 'fork'; readonly generation: string }
  | {
      readonly type: 'done'
      readonly nowMs: number
      readonly checkpoint: number
      readonly commitUs: number
    }
  | { readonly type: 'heartbeat'; readonly nowMs: number }
  /** The secondary has acknowledged data. */
  | { readonly type: 'acknowledged'; readonly nowMs: number }
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
  /** Whose changes an operator gives up where the two sides have parted. */
  | { readonly type: 'discard'; readonly whose: 'local' | 'remote' }
  | {
      readonly type: 'configure'
      readonly ack: Ack | undefined
      readonly onLinkLoss: 'continue' | 'freeze' | undefined
      readonly intervalMs: number | undefined
    }
  /** The answer to `fence`. */
  | { readonly type: 'fenced'; readonly fenced: boolean }
  /** A copy of everything, whatever is known to be equal. */
  | { readonly type: 'copy-again'; readonly comparesFirst: boolean }
  /** What a verify has found to differ is to be sent. */
  | { readonly type: 'repair'; readonly nowMs: number }
  /** A part of a copy, as large as the secondary should have to hold, was sent. */
  | { readonly type: 'part-sent' }
  | { readonly type: 'resynced'; readonly nowMs: number; readonly session: number }
  /** The group has one more disk; or, by index, one less, or a larger one. */
  | { readonly type: 'disk-added'; readonly disk: DiskIdentity }
  | { readonly type: 'disk-removed'; readonly disk: number }
  | { readonly type: 'disk-grown'; readonly disk: number; readonly size: number }
  /** The secondary says of a disk, by its number, that it takes it, has it no longer, or has made it of this size. */
  | {
      readonly type: 'disk-news'
      readonly nowMs: number
      readonly news: 'accept' | 'withdraw' | 'resized'
      readonly number: number
      readonly size: number
    }
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
  /**
   * Send every block that is unsent, then give back `resynced` with the same session.
   * `copies`: the disks as a whole, which has to be remembered before. `compares`: but what the secondary has already.
   */
  | {
      readonly type: 'resync'
      readonly session: number
      readonly copies: boolean
      readonly compares: boolean
      /** Their indexes. */
      readonly disks: readonly number[]
    }
  /** Other disks count now than those that are remembered. */
  | { readonly type: 'remember' }
  /** Ask whether the other side is fenced, then give back `fenced`. */
  | { readonly type: 'fence'; readonly peer: string }
  /** Answer another primary's call. */
  | { readonly type: 'answer'; readonly refusal: Refusal }
  /** The other side is the primary, and nothing was written here: become its secondary. */
  | { readonly type: 'step-down'; readonly reason: string }
  | { readonly type: 'event'; readonly event: GroupEvent }
