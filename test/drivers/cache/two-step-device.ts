/**
 * A disk that does each request in two steps, which a test takes: it is performed at one moment and answered at another,
 * well or badly. What fails may have been performed, or not, or for its first half.
 */

import type { BlockDevice, Capabilities, Extent, Geometry } from '../../../core/block-device.ts'
import { Fault } from '../../../core/fault.ts'

interface Pending {
  perform: ((half: boolean) => void) | undefined
  readonly resolve: () => void
  readonly reject: (fault: Fault) => void
}

export class TwoStepDevice implements BlockDevice {
  readonly geometry: Geometry
  readonly can: Capabilities = {
    flush: true,
    fua: true,
    trim: true,
    zero: true,
    fastZero: false,
    status: false,
    resize: false,
    cache: false,
  }
  readonly content: Buffer
  /** Told after each change of the content. */
  onChange: () => void = () => undefined
  /** Bytes of the reads that were performed. */
  bytesRead = 0
  readonly #pending: Pending[] = []

  constructor(size: number) {
    this.geometry = {
      size,
      block: { min: 1, preferred: 1, max: 2 ** 25 },
      readOnly: false,
      rotational: false,
    }
    this.content = Buffer.alloc(size)
  }

  get inFlight(): number {
    return this.#pending.length
  }

  /** Takes the next step of one request; `how` decides whether its answer is a failure. */
  step(which: number, how: number): void {
    const index = which % Math.max(1, this.#pending.length)
    const pending = this.#pending[index]
    if (pending === undefined) return
    const { perform } = pending
    const fails = how % 5 === 0
    if (perform !== undefined && !(fails && how % 2 === 0)) {
      pending.perform = undefined
      perform(fails)
      if (!fails) return
    }
    this.#pending.splice(index, 1)
    if (fails) pending.reject(new Fault('IO', 'a bad day'))
    else pending.resolve()
  }

  read(into: Buffer, at: number): Promise<void> {
    return this.#submit(() => {
      this.bytesRead += into.length
      this.content.copy(into, 0, at, at + into.length)
    })
  }

  write(from: Buffer, at: number): Promise<void> {
    return this.#submit((half) => {
      from.copy(this.content, at, 0, half ? from.length / 2 : from.length)
      this.onChange()
    })
  }

  zero(at: number, length: number): Promise<void> {
    return this.#submit((half) => {
      this.content.fill(0, at, at + (half ? length >> 1 : length))
      this.onChange()
    })
  }

  trim(at: number, length: number): Promise<void> {
    return this.zero(at, length)
  }

  flush(): Promise<void> {
    return Promise.resolve()
  }

  status(at: number, length: number): Extent[] {
    return [{ at, length, kind: 'data' }]
  }

  resize(): Promise<void> {
    return Promise.reject(new Fault('NOT_SUPPORTED', 'not needed here'))
  }

  close(): Promise<void> {
    return Promise.resolve()
  }

  #submit(perform: (half: boolean) => void): Promise<void> {
    return new Promise((resolve, reject) => this.#pending.push({ perform, resolve, reject }))
  }
}
