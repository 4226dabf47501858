/** Keeps trying to connect to the peer, with pauses that grow while it does not work. Decides nothing else. */

import type { Timers } from '../core/clock.ts'
import type { Dial, Link, LinkHandlers } from './environment.ts'

const RECONNECT_MIN_MS = 50
const RECONNECT_MAX_MS = 2_000

export interface ConnectorContext {
  readonly timers: Timers
  /** Whether a connection is wanted now. */
  readonly wanted: () => boolean
  readonly connected: (open: (handlers: LinkHandlers) => Link) => void
  readonly failed: (reason: string) => void
}

export class Connector {
  readonly #dial: Dial
  readonly #context: ConnectorContext
  /** Ends the attempt to connect, or the wait for the next one. */
  #stop: (() => void) | undefined
  #pauseMs = RECONNECT_MIN_MS
  #closed = false

  constructor(dial: Dial, context: ConnectorContext) {
    this.#dial = dial
    this.#context = context
  }

  /** Tries now; an attempt that is under way must not succeed any more. */
  connect(): void {
    this.#stop?.()
    this.#stop = undefined
    if (this.#closed || !this.#context.wanted()) return
    this.#stop = this.#dial(
      (open) => {
        this.#stop = undefined
        this.#context.connected(open)
      },
      (reason) => {
        this.#context.failed(reason)
        this.connectLater()
      },
    )
  }

  connectLater(): void {
    if (this.#closed) return
    this.#stop?.()
    this.#stop = this.#context.timers.after(this.#pauseMs, () => this.connect())
    this.#pauseMs = Math.min(RECONNECT_MAX_MS, this.#pauseMs * 2)
  }

  /** A connection was of use. Not before: a peer that takes it and then refuses would be tried without a pause. */
  succeeded(): void {
    this.#pauseMs = RECONNECT_MIN_MS
  }

  close(): void {
    this.#closed = true
    this.#stop?.()
  }
}
