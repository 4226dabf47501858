/**
 * How a primary's resyncs are carried out: in parts or as one epoch, comparing before they send or not. Pure.
 *
 * Invariant: a session's number is never used again, so that what is said of an old resync is told from the present one.
 */

import type { Hello } from './handshake.ts'

export interface ResyncSettings {
  /** The most bytes of a copy between two partial checkpoints. */
  readonly partBytes: number
  /** Whether what may differ is compared first, and only what does is sent. */
  readonly comparesFirst: boolean
}

/** A part of a copy, as a share of what the secondary can hold. */
const PART_SHARE = 0.25

export class ResyncTerms {
  readonly #settings: ResyncSettings
  #partBytes = 0
  /** A resync was too much for the secondary to hold as one epoch: it is sent in parts. */
  #inParts = false
  #session = 0
  /** An operator wants the next one to compare first. */
  #asked = false
  #peerCompares = false

  constructor(settings: ResyncSettings) {
    this.#settings = settings
  }

  /** Whether the secondary can say what it holds. */
  get peerCompares(): boolean {
    return this.#peerCompares
  }

  get comparesFirst(): boolean {
    return this.#peerCompares && (this.#asked || this.#settings.comparesFirst)
  }

  get inParts(): boolean {
    return this.#inParts
  }

  /** A secondary was greeted. */
  greet({ capacity, features }: Hello): void {
    this.#partBytes = Math.min(this.#settings.partBytes, Math.floor(capacity * PART_SHARE))
    this.#peerCompares = features.includes('checksums')
  }

  nextSession(): number {
    this.#session += 1
    return this.#session
  }

  /** From now on until it is done: the resync is too much for one epoch. */
  split(): void {
    this.#inParts = true
  }

  /** An operator wants everything to be copied. */
  copyAgain(comparesFirst: boolean): void {
    this.#inParts = true
    this.#asked = comparesFirst
  }

  /** Everything is sent. */
  sent(): void {
    this.#inParts = false
    this.#asked = false
  }

  /** Whether an epoch of so many bytes is a part that is large enough. */
  isPart(copies: boolean, epochBytes: number): boolean {
    return (copies || this.#inParts) && epochBytes >= this.#partBytes
  }
}
