/**
 * The way of a primary's frames into a secondary: at once while there is room for data, else held, with the link not
 * read, until committed epochs have given room back.
 *
 * Invariants:
 *  - 20 What is taken stays within the limits of memory and log; a few frames that had arrived already may be held.
 *  - Frames are handled in the order of their arrival, whether they were held or not.
 */

import { Fault } from '../core/fault.ts'
import type { Link } from './environment.ts'
import { MAX_PAYLOAD, type Frame } from './machine/frame.ts'

/** What the intake asks of its group. */
export interface IntakeContext {
  hasRoom(bytes: number): boolean
  /** Calls `wake` once when there may be more room. @returns false when waiting would be for ever */
  awaitRoom(wake: () => void): boolean
  /** Handles a frame for whose data there is room. @throws Fault to end the link */
  handle(link: number, frame: Frame): void
  /** There is no room, and none to be awaited. */
  overflow(): void
  linkOf(number: number): Link | undefined
}

export class Intake {
  readonly #context: IntakeContext
  /** Frames that wait for room, with payloads of their own, since the link reuses its own. */
  #held: { readonly link: number; readonly frames: Frame[] } | undefined
  /** The payload of the first: there is mostly no other, and a link that is faster than what is behind it is held all the time. */
  #first: Buffer | undefined

  constructor(context: IntakeContext) {
    this.#context = context
  }

  /** The link that is not read at present. */
  get heldLink(): number | undefined {
    return this.#held?.link
  }

  /** @throws Fault to end the link */
  receive(link: number, frame: Frame): void {
    if (this.#held?.link === link) this.#held.frames.push(kept(frame))
    else if (this.#context.hasRoom(frame.payload.length) || !isData(frame))
      this.#context.handle(link, frame)
    else this.#hold(link, frame)
  }

  /** There may be more room: what is held is tried again. */
  retry(): void {
    const held = this.#held
    if (held === undefined) return
    this.#held = undefined
    const link = this.#context.linkOf(held.link)
    if (link === undefined) return
    link.resume()
    // Whoever gave the room back has nothing to do with what comes of these frames: faults end the link here.
    try {
      for (const frame of held.frames) if (!link.closed) this.receive(held.link, frame)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      link.close(error.message)
    }
  }

  /** Forgets what is held: its link is gone. */
  discard(): void {
    this.#held = undefined
  }

  #hold(link: number, frame: Frame): void {
    if (!this.#context.awaitRoom(() => this.retry())) return this.#context.overflow()
    this.#held = { link, frames: [this.#keptFirst(frame)] }
    this.#context.linkOf(link)?.pause()
  }

  #keptFirst(frame: Frame): Frame {
    const { payload } = frame
    // It may be held once more.
    if (payload.buffer === this.#first?.buffer) return frame
    if (this.#first === undefined || this.#first.length < payload.length)
      this.#first = Buffer.allocUnsafeSlow(Math.max(payload.length, MAX_PAYLOAD))
    payload.copy(this.#first)
    return { ...frame, payload: this.#first.subarray(0, payload.length) }
  }
}

function isData({ type }: Frame): boolean {
  return type === 'write' || type === 'zero'
}

function kept(frame: Frame): Frame {
  return { ...frame, payload: Buffer.from(frame.payload) }
}
