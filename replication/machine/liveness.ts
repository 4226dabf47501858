/** Heartbeats and silence: when to send a sign of life, when to give up on the other side. Pure; time is an input. */

export interface LivenessSettings {
  /** A frame is sent at least this often. */
  readonly heartbeatMs: number
  /** A peer that was not heard for this long is gone. */
  readonly timeoutMs: number
}

export class Liveness {
  readonly #settings: LivenessSettings
  #heardMs = 0
  #sentMs = 0

  constructor(settings: LivenessSettings) {
    this.#settings = settings
  }

  start(nowMs: number): void {
    this.#heardMs = nowMs
    this.#sentMs = nowMs
  }

  heard(nowMs: number): void {
    this.#heardMs = nowMs
  }

  /** `beat`: send a heartbeat now; `dead`: end the link. */
  tick(nowMs: number): 'nothing' | 'beat' | 'dead' {
    if (nowMs - this.#heardMs >= this.#settings.timeoutMs) return 'dead'
    if (nowMs - this.#sentMs < this.#settings.heartbeatMs) return 'nothing'
    this.#sentMs = nowMs
    return 'beat'
  }
}
