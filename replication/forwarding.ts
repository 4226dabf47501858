/**
 * The stream of data from a primary to its secondary: sends frames over the link in use, and lets guests' writes complete when
 * the secondary has of them what `ack` asks for (machine/forwarded-writes.ts).
 *
 * Invariant: with ack=sent a write costs nothing more than its frames, while no more is under way than the link takes at once
 * (machine/send-window.ts).
 */

import type { MaybePromise } from '../core/maybe-promise.ts'
import type { Link } from './environment.ts'
import { HEADER_SIZE, type Frame } from './machine/frame.ts'
import { ForwardedWrites } from './machine/forwarded-writes.ts'
import type { PrimaryMachine } from './machine/primary.ts'

export class Forwarding {
  readonly #machine: PrimaryMachine
  readonly #nowMs: () => number
  readonly #writes: ForwardedWrites
  #link: Link | undefined
  /** Called once when no write waits any more. */
  #settled: (() => void)[] = []
  #finished = false

  constructor(machine: PrimaryMachine, nowMs: () => number, leastWindow?: number) {
    this.#machine = machine
    this.#nowMs = nowMs
    this.#writes = new ForwardedWrites(leastWindow)
  }

  get link(): Link | undefined {
    return this.#link
  }

  begin(link: Link): void {
    this.#link = link
    this.#writes.begin()
  }

  /** The link is gone. Call settle() when the machine knows. */
  end(): void {
    this.#link = undefined
    this.#writes.lose()
  }

  send(data: Frame): void {
    if (this.#link === undefined) return
    this.#count(data)
    this.#link.send(data)
  }

  /** Of a resync. `handed`: the kernel has it, or the link is gone. */
  sendCopy(data: Frame, handed: () => void): void {
    if (this.#link === undefined) return handed()
    this.#count(data)
    this.#link.sendData(data, handed)
  }

  /** The last frame of a guest's write. `acknowledged`: as far as the secondary is concerned, the write may complete. */
  sendWrite(data: Frame, acknowledged: () => void): void {
    const writes = this.#writes
    if (this.#link === undefined) return this.strand(acknowledged)
    const position = this.#count(data)
    const { link } = writes
    this.#link.sendData(data, () => {
      writes.wait(link, position, this.#machine.ack, acknowledged)
      if (writes.areStranded) this.settle()
    })
  }

  /** A write that nobody can send: it completes when the primary may go on alone, or the secondary has everything again. */
  strand(acknowledged: () => void): void {
    this.#writes.strand(acknowledged)
    this.settle()
  }

  /** @returns what is wrong with that, if anything */
  acknowledge(kind: 'received' | 'stored', position: number): string | undefined {
    const objection = this.#writes.acknowledge(kind, position, this.#machine.ack, this.#nowMs())
    this.#tellSettled()
    return objection
  }

  /** The machine has moved: whoever waits may not have to any more. */
  settle(): void {
    const { ack, needsAck, isStreaming } = this.#machine
    this.#writes.release(ack)
    if (!needsAck) this.#writes.releaseStranded()
    else if (isStreaming && this.#link !== undefined) this.#writes.rejoin(ack)
    else if (this.#finished) this.#writes.releaseStranded()
    this.#tellSettled()
  }

  /** Resolves when every write that was sent before is on the secondary's stable storage, where `ack` asks for that. */
  flushed(): MaybePromise<void> {
    const { ack } = this.#machine
    if (ack !== 'durable' || this.#link === undefined || this.#writes.lacks(ack) === 0) return
    const { link, sent } = this.#writes
    return new Promise((resolve) => {
      this.#writes.wait(link, sent, ack, resolve)
    })
  }

  /** Nobody may use this side any more: what waits for a secondary to come back is refused by the gate. */
  finish(): void {
    this.#finished = true
    this.settle()
  }

  /** Resolves when no write waits for the link in use to acknowledge it. */
  quiet(): MaybePromise<void> {
    if (!this.#writes.areWaiting) return
    return new Promise((resolve) => {
      this.#settled.push(resolve)
    })
  }

  /** @returns the frame's position */
  #count({ payload }: Frame): number {
    if (!this.#machine.isWindowed) this.#writes.unbound()
    return this.#writes.count(HEADER_SIZE + payload.length, this.#nowMs())
  }

  #tellSettled(): void {
    if (this.#settled.length === 0 || this.#writes.areWaiting) return
    for (const settled of this.#settled.splice(0)) settled()
  }
}
