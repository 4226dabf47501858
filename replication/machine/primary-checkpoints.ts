/**
 * The checkpoints of a primary: the markers that end its epochs, the commands that wait for them, and those that it makes by
 * itself.
 *
 * Invariants:
 *  - 22 A command is told of a checkpoint only when its own number was reported as done.
 *  - A command is answered exactly once (markers.ts).
 */

import type { FaultCode } from '../../core/fault.ts'
import type { CheckpointResult } from '../group.ts'
import { frame, PARTIAL, UNASKED } from './frame.ts'
import { Markers, type CheckpointRequest, type Marker } from './markers.ts'
import type { PrimaryOutbox } from './primary-outbox.ts'
import type { PrimaryStanding } from './primary-standing.ts'

export class PrimaryCheckpoints {
  /** Milliseconds between checkpoints that the primary makes by itself; 0: it makes none. */
  intervalMs: number
  readonly #group: string
  readonly #self: PrimaryStanding
  readonly #out: PrimaryOutbox
  readonly #markers = new Markers()
  #epochBytes = 0
  #lastMarkerMs = 0

  constructor(
    { group, intervalMs }: { readonly group: string; readonly intervalMs: number },
    self: PrimaryStanding,
    out: PrimaryOutbox,
  ) {
    this.#group = group
    this.intervalMs = intervalMs
    this.#self = self
    this.#out = out
  }

  /** The number that has to be confirmed next. */
  get awaited(): number | undefined {
    return this.#markers.awaited
  }

  /** Payload bytes since the last marker. */
  get epochBytes(): number {
    return this.#epochBytes
  }

  /** The epoch carries so many bytes more. Hot path. */
  carry(length: number): void {
    this.#epochBytes += length
  }

  /** A stream begins, and an epoch with it. */
  begin(): void {
    this.#epochBytes = 0
  }

  /** The command waits until the resync is done. */
  queue(request: CheckpointRequest): void {
    this.#markers.queue(request)
  }

  announceQueued(nowMs: number): void {
    for (const request of this.#markers.takeQueued()) this.announce(request, nowMs)
  }

  announce(waiter: CheckpointRequest, nowMs: number): void {
    if (waiter.deadlineMs <= nowMs)
      return this.fail(waiter, 'TIMEOUT', 'the resync took longer than the time allowed')
    this.#lastMarkerMs = nowMs
    this.mark(waiter, 0)
  }

  mark(waiter: CheckpointRequest | undefined, flags: number): void {
    const checkpoint = this.#self.announce()
    const partial = flags === PARTIAL
    this.#markers.sent({ checkpoint, bytes: this.#epochBytes, partial, waiter })
    this.#epochBytes = 0
    this.#out.send(frame('checkpoint', { position: checkpoint, flags }))
  }

  /** Protection without a toolstack: a checkpoint as often as asked for, while there is something to protect. */
  markIfDue(nowMs: number): void {
    if (this.intervalMs === 0 || this.#epochBytes === 0) return
    if (nowMs - this.#lastMarkerMs < this.intervalMs || this.awaited !== undefined) return
    this.#lastMarkerMs = nowMs
    this.mark(undefined, UNASKED)
  }

  /** @returns the marker that was confirmed; undefined when it is not the one that is due */
  confirm(checkpoint: number): Marker | undefined {
    return this.awaited === checkpoint ? this.#markers.confirm() : undefined
  }

  /** A confirmed marker is told to everybody, and to who waits for it. */
  report({ checkpoint, waiter, bytes }: Marker, commitUs: number, nowMs: number): void {
    const pauseUs = waiter === undefined ? commitUs : Math.round((nowMs - waiter.askedMs) * 1000)
    const result: CheckpointResult = { checkpoint, pauseUs, commitUs, bytes }
    this.#out.event({ event: 'REPLICATION_CHECKPOINT', data: { group: this.#group, ...result } })
    if (waiter !== undefined)
      this.#out.add({ type: 'checkpoint-done', request: waiter.request, result })
  }

  giveUpOverdue(nowMs: number): void {
    for (const { waiter, checkpoint } of this.#markers.takeOverdue(nowMs)) {
      const reason =
        checkpoint === undefined
          ? 'the resync took longer than the time allowed'
          : `checkpoint ${checkpoint} was not confirmed in time; it may still be committed later`
      this.fail(waiter, 'TIMEOUT', reason)
    }
  }

  /** The link is gone. */
  giveUpAll(reason: string): void {
    for (const { waiter, checkpoint } of this.#markers.dropAll()) {
      const what =
        checkpoint === undefined ? '' : `checkpoint ${checkpoint} is not known to be committed: `
      this.fail(waiter, 'LINK_LOST', `${what}${reason}`)
    }
  }

  fail({ request }: CheckpointRequest, code: FaultCode, reason: string): void {
    this.#out.add({ type: 'checkpoint-failed', request, code, reason })
  }
}
