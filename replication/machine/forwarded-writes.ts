/**
 * The data that a primary has sent on its present link, counted in frames, and the guests' writes that wait for the secondary
 * to acknowledge them. Pure, and beside the machine because it is the hot path.
 *
 * Invariants:
 *  - 5, 21 A write is let go exactly once.
 *  - A write is let go when everything up to it is acknowledged on the link that carries it. Where that link is lost, it is
 *    stranded: let go when the primary may go on alone, or joined to a later link on which everything was sent again, and
 *    let go when all of that is acknowledged.
 */

import type { Ack } from '../group.ts'
import { SendWindow } from './send-window.ts'

interface Waiting {
  readonly position: number
  readonly letGo: () => void
}

export class ForwardedWrites {
  readonly #leastWindow: number | undefined
  /** Of the present link; data of another one cannot be acknowledged any more. */
  #link = 0
  #sent = 0
  #received = 0
  #stored = 0
  /** Where the peer tells what it has: with ack=sent a write is let go while it lies within. */
  #window: SendWindow | undefined
  /** In the order of their positions. */
  #waiting: Waiting[] = []
  #stranded: (() => void)[] = []

  /** @param leastWindow bytes, for a SendWindow */
  constructor(leastWindow?: number) {
    this.#leastWindow = leastWindow
  }

  get link(): number {
    return this.#link
  }

  /** Data frames that were sent on the present link. */
  get sent(): number {
    return this.#sent
  }

  /** Whether a write waits that no link carries. */
  get areStranded(): boolean {
    return this.#stranded.length > 0
  }

  /** Whether a write waits for an acknowledgement on the present link. */
  get areWaiting(): boolean {
    return this.#waiting.length > 0
  }

  /** Data frames that were sent and are not acknowledged as `ack` asks for. */
  lacks(ack: Ack): number {
    return this.#sent - this.#acknowledged(ack)
  }

  /** A link begins. */
  begin(): void {
    this.lose()
    this.#link += 1
    this.#window = new SendWindow(this.#leastWindow)
    this.#sent = 0
    this.#received = 0
    this.#stored = 0
  }

  /** The link is gone: nothing on it is going to be acknowledged. */
  lose(): void {
    for (const { letGo } of this.#waiting) this.#stranded.push(letGo)
    this.#waiting = []
    this.#link += 1
  }

  /** Another data frame is sent, with so many bytes. @returns its position */
  count(bytes: number, nowMs: number): number {
    this.#sent += 1
    this.#window?.send(bytes, nowMs)
    return this.#sent
  }

  /** The peer of the present link does not tell what it has. */
  unbound(): void {
    this.#window = undefined
  }

  /** The kernel has a write whose last frame was sent as `position` of `link`. */
  wait(link: number, position: number, ack: Ack, letGo: () => void): void {
    if (link !== this.#link) {
      if (ack === 'sent') letGo()
      else this.strand(letGo)
    } else if (position <= this.#acknowledged(ack)) letGo()
    else this.#waiting.push({ position, letGo })
  }

  /** A write that no link carries. */
  strand(letGo: () => void): void {
    this.#stranded.push(letGo)
  }

  /**
   * The secondary has so many frames.
   * @returns what is wrong with that, if anything
   */
  acknowledge(
    kind: 'received' | 'stored',
    position: number,
    ack: Ack,
    nowMs: number,
  ): string | undefined {
    if (position > this.#sent)
      return `the secondary acknowledged ${position} data frames, of ${this.#sent}`
    if (kind === 'stored') this.#stored = Math.max(this.#stored, position)
    this.#received = Math.max(this.#received, position)
    this.#window?.receive(position, nowMs)
    this.release(ack)
    return undefined
  }

  /** Lets go what is acknowledged as `ack` asks for. */
  release(ack: Ack): void {
    const position = this.#acknowledged(ack)
    let done = 0
    for (const waiting of this.#waiting) {
      if (waiting.position > position) break
      done += 1
    }
    if (done > 0) for (const { letGo } of this.#waiting.splice(0, done)) letGo()
  }

  /** The primary may go on alone. */
  releaseStranded(): void {
    for (const letGo of this.#stranded.splice(0)) letGo()
  }

  /** Everything that a stranded write changed was sent again on the present link. */
  rejoin(ack: Ack): void {
    for (const letGo of this.#stranded.splice(0)) this.wait(this.#link, this.#sent, ack, letGo)
  }

  #acknowledged(ack: Ack): number {
    if (ack === 'sent') return this.#window?.within ?? this.#sent
    return ack === 'received' ? this.#received : this.#stored
  }
}
