/** What the two sides of a group are told by the configuration. */

import type { Ack, GroupMode } from './group.ts'

export interface GroupSettings {
  readonly group: string
  readonly mode: GroupMode
  /** What the two sides speak: colotap's own frames, or what Xen's blktap2 speaks. */
  readonly wire: 'colotap' | 'blktap2'
  /** Which side this is until it remembers better. */
  readonly role: 'primary' | 'secondary'
  /** Where the other side listens, for messages; null where it is not known. */
  readonly peer: string | null
  /** Whether a primary can reach this side. */
  readonly listens: boolean
  readonly heartbeatMs: number
  readonly timeoutMs: number
  /** Bytes of epochs that a secondary may hold in memory. */
  readonly memory: number
  /** Bytes of it in use beyond which received data is kept in the journal only; the usual part when left out. */
  readonly spillBytes?: number
  /** Bytes of data that may be on their way to a secondary in any case (machine/send-window.ts); the usual ones where it is not given. */
  readonly leastWindow?: number
  /** Where a secondary's checkpoints live: on disk, or as long as its process. */
  readonly durability: 'journal' | 'memory'
  /** Bytes that a secondary's journal may grow to. */
  readonly journal: number
  /** Both sides begin with the same content, says an operator. */
  readonly identical: boolean
  readonly ack: Ack
  readonly onLinkLoss: 'continue' | 'freeze'
  /** A program that is asked before this side goes on without the other one; null: nobody is asked. */
  readonly fence: string | null
  /** Milliseconds between checkpoints that a primary makes by itself; 0: none. */
  readonly intervalMs: number
  /** The most bytes of a copy that a secondary has to hold at a time. */
  readonly partBytes: number
  /** The most bytes that a secondary is asked about in one question. */
  readonly compareBytes: number
  /** Whether a resync asks what the secondary has before it sends. */
  readonly comparesFirst: boolean
  /** Bytes a second that a resync sends at most; 0: as many as it can. */
  readonly resyncRate: number
}

/** What a checkpoint command waits at most when it does not say. */
export const CHECKPOINT_TIMEOUT_MS = 30_000
