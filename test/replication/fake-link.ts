/** One end of a link, which a group is given; the test is the primary at the other one, and sees what is sent to it. */

import type { Link } from '../../replication/environment.ts'
import type { Frame } from '../../replication/machine/frame.ts'

export class FakeLink implements Link {
  readonly peer = 'primary'
  closed = false
  readonly sent: Frame[] = []
  #waiting: { type: string; resolve: (frame: Frame) => void }[] = []

  send(outgoing: Frame): void {
    this.sent.push(outgoing)
    const waiting = this.#waiting.filter(({ type }) => type === outgoing.type)
    this.#waiting = this.#waiting.filter(({ type }) => type !== outgoing.type)
    for (const { resolve } of waiting) resolve(outgoing)
  }

  sendData(outgoing: Frame, handed: () => void): void {
    this.send(outgoing)
    handed()
  }

  next(type: string): Promise<Frame> {
    return new Promise((resolve) => this.#waiting.push({ type, resolve }))
  }

  pause(): void {}
  resume(): void {}
  close(): void {
    this.closed = true
  }
}
