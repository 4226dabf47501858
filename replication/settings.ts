/** What the two sides of a group are told by the configuration. */

import type { GroupMode } from './group.ts'

export interface GroupSettings {
  readonly group: string
  readonly mode: GroupMode
  readonly host: string
  readonly port: number
  readonly heartbeatMs: number
  readonly timeoutMs: number
  /** Bytes of epochs that a secondary may hold in memory. */
  readonly memory: number
  /** Where a secondary's checkpoints live: on disk, or as long as its process. */
  readonly durability: 'journal' | 'memory'
  /** Bytes that a secondary's journal may grow to. */
  readonly journal: number
}

/** What a checkpoint command waits at most when it does not say. */
export const CHECKPOINT_TIMEOUT_MS = 30_000
