/**
 * Records in which spilled data lies, that do what a journal may do to its readers: reads end in any order, at once or later,
 * and fail; what nobody needs any more is gone at once, unless it is pinned.
 */

import { assert } from '../../core/assert.ts'
import { Fault } from '../../core/fault.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'
import { seededRandom } from '../../core/seeded-random.ts'
import type { RecordSource, SpilledRecord } from '../../ramdisk/record-source.ts'

export class UnrulyRecords implements RecordSource {
  /** Every read fails. */
  failing = false
  readonly #random: () => number
  readonly #records = new Map<number, SpilledRecord>()
  readonly #pins = new Set<{ readonly place: number }>()
  #unruly = true
  #place = 1000
  #waiting: (() => void)[] = []
  /** The places of each epoch: the one that grows, those that were cut, the committed ones by checkpoint. */
  #pending: number[] = []
  #cut: number[][] = []
  readonly #sealed = new Map<number, number[]>()
  /** What nobody needs, but for a pin. */
  readonly #spent = new Set<number>()

  constructor(seed: number) {
    this.#random = seededRandom(seed)
  }

  get pinned(): number {
    return this.#pins.size
  }

  /** @returns the place of a new record */
  add(at: number, bytes: Buffer): number {
    this.#place += 1 + Math.floor(this.#random() * 2 ** 33)
    this.#records.set(this.#place, { at, bytes })
    this.#pending.push(this.#place)
    return this.#place
  }

  read(place: number, length: number): MaybePromise<SpilledRecord> {
    const fails = this.failing || (this.#unruly && this.#random() < 0.15)
    const look = (): SpilledRecord => {
      if (fails) throw new Fault('IO', 'a record cannot be read')
      const record = this.#records.get(place)
      assert(record?.bytes.length === length, 'a record is there while somebody may read it')
      return record
    }
    if (!this.#unruly || this.#random() < 0.3) return look()
    return new Promise<void>((resolve) => this.#waiting.push(resolve)).then(look)
  }

  pin(place: number): () => void {
    const pin = { place }
    this.#pins.add(pin)
    return () => {
      assert(this.#pins.delete(pin), 'what is pinned is let go once')
      this.#sweep()
    }
  }

  finishOne(which: number): void {
    const [end] = this.#waiting.splice(which % Math.max(1, this.#waiting.length), 1)
    end?.()
  }

  /** From now on every read works, at once. */
  calm(): void {
    this.#unruly = false
    while (this.#waiting.length > 0) this.finishOne(0)
  }

  cut(): void {
    this.#cut.push(this.#pending)
    this.#pending = []
  }

  seal(checkpoint: number): void {
    this.#sealed.set(checkpoint, this.#cut.shift() ?? [])
  }

  flushed(checkpoint: number): void {
    this.#drop(this.#sealed.get(checkpoint) ?? [])
  }

  discardPending(): void {
    const pending = this.#pending
    this.#pending = []
    this.#drop(pending)
  }

  discardCut(): void {
    const cut = this.#cut
    this.#cut = []
    this.#drop(cut.flat())
  }

  #drop(places: readonly number[]): void {
    for (const place of places) this.#spent.add(place)
    this.#sweep()
  }

  #sweep(): void {
    const first = Math.min(...[...this.#pins].map(({ place }) => place))
    for (const place of this.#spent) {
      if (place >= first) continue
      this.#records.delete(place)
      this.#spent.delete(place)
    }
  }
}
