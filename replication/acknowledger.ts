/**
 * Tells a primary how much of its data a secondary has, in memory or on stable storage, as far as the primary asks; one whose
 * writes do not wait for that hears it in steps, so that it knows what is under way (machine/send-window.ts).
 *
 * Invariants:
 *  - A frame is counted once the layers and the log have taken it, and told as stored once the log has flushed it.
 *  - At most one acknowledgement leaves in a turn of the event loop, and one flush of the log is under way at a time: it
 *    covers everything that came before it, and what comes meanwhile shares the next one.
 *  - A link that is gone is told nothing, and what came on it counts for no other.
 */

import { Fault } from '../core/fault.ts'
import { isPromise, type MaybePromise } from '../core/maybe-promise.ts'
import { ACKS, type Ack } from './group.ts'
import { frame, HEADER_SIZE, type Frame } from './machine/frame.ts'
import { LEAST_WINDOW, STEPS } from './machine/send-window.ts'

export interface AcknowledgerContext {
  /** Resolves when everything that the log was given is on stable storage. @throws Fault when it never will be */
  readonly sync: () => MaybePromise<void>
  readonly send: (link: number, frame: Frame) => void
}

export class Acknowledger {
  readonly #context: AcknowledgerContext
  /** Bytes after which a primary is told that does not wait for it. */
  readonly #step: number
  #link = 0
  /** What is asked for; nothing by one that cannot use it. */
  #ack: Ack | undefined
  /** Data frames of the link that are here, and those that its primary knows of. */
  #taken = 0
  #told = 0
  /** Bytes that came since the primary was told. */
  #untold = 0
  #planned = false
  #syncing = false

  /** @param leastWindow bytes that the primary may send without being told anything */
  constructor(context: AcknowledgerContext, leastWindow = LEAST_WINDOW) {
    this.#context = context
    this.#step = leastWindow / STEPS
  }

  /** What the primary on a link asks to be told. @throws Fault PROTOCOL where that is nothing known */
  ask(link: number, level: number): void {
    const ack = ACKS[level]
    if (ack === undefined)
      throw new Fault('PROTOCOL', `acknowledgements of level ${level} do not exist`)
    this.#follow(link)
    this.#ack = ack
    // What it knows in another sense does not count.
    this.#told = 0
    this.#plan()
  }

  /** A data frame of a link is here. Hot path. */
  took(link: number, { payload }: Frame): void {
    this.#follow(link)
    this.#taken += 1
    // With its header: zeroes are data frames, too.
    this.#untold += HEADER_SIZE + payload.length
    if (this.#ack === undefined || this.#planned) return
    if (this.#ack !== 'sent' || this.#untold >= this.#step) this.#plan()
  }

  #follow(link: number): void {
    if (link === this.#link) return
    this.#link = link
    this.#ack = undefined
    this.#taken = 0
    this.#told = 0
    this.#untold = 0
  }

  /** What arrives together is told of together. */
  #plan(): void {
    this.#planned = true
    void Promise.resolve().then(() => {
      this.#planned = false
      this.#tell()
    })
  }

  #tell(): void {
    if (this.#taken === this.#told) return
    if (this.#ack === 'received' || this.#ack === 'sent')
      this.#say('received', this.#link, this.#taken)
    if (this.#ack === 'durable' && !this.#syncing) this.#store()
  }

  #store(): void {
    const [link, position] = [this.#link, this.#taken]
    const syncing = this.#context.sync()
    if (!isPromise(syncing)) return this.#say('stored', link, position)
    this.#syncing = true
    syncing.then(
      () => {
        this.#syncing = false
        if (this.#ack === 'durable') this.#say('stored', link, position)
        this.#tell()
      },
      (error: unknown) => {
        this.#syncing = false
        // The link ends for the same reason.
        if (!(error instanceof Fault)) throw error
      },
    )
  }

  #say(type: 'received' | 'stored', link: number, position: number): void {
    if (link !== this.#link) return
    this.#told = position
    this.#untold = 0
    this.#context.send(link, frame(type, { position }))
  }
}
