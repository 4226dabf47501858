/** Commands that wait for a machine's answer: numbered, so that the machine need not know promises. */

import { assert } from '../core/assert.ts'

interface Waiting<T> {
  readonly resolve: (value: T) => void
  readonly reject: (error: Error) => void
}

export class Requests<T> {
  #next = 1
  #waiting = new Map<number, Waiting<T>>()

  /** Passes a fresh number to `start` and resolves when that number is answered, however soon. */
  open(start: (request: number) => void): Promise<T> {
    const request = this.#next
    this.#next += 1
    return new Promise<T>((resolve, reject) => {
      this.#waiting.set(request, { resolve, reject })
      start(request)
    })
  }

  resolve(request: number, value: T): void {
    this.#take(request).resolve(value)
  }

  reject(request: number, error: Error): void {
    this.#take(request).reject(error)
  }

  #take(request: number): Waiting<T> {
    const waiting = this.#waiting.get(request)
    assert(waiting !== undefined, 'a request is answered once')
    this.#waiting.delete(request)
    return waiting
  }
}
