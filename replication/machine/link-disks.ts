/**
 * The disks of a secondary, as its link to the primary has them: which number means which, and which count with the next
 * checkpoint.
 *
 * Invariant: a disk counts only if it counted before, or was declared to be sent as a whole on this very link.
 */

import { commonDisks, type ApartDisks } from './disk-sets.ts'
import type { DiskIdentity, Hello } from './handshake.ts'

/** A disk of the primary that may join the stream. */
interface Offer {
  readonly number: number
  readonly size: number
}

export class LinkDisks {
  /** Names, by the primary's number; null where a disk is not here, or not any more. */
  readonly #names: (string | null)[]
  /** Names of disks that are on the link, and of those that have to be sent as a whole first. */
  readonly #carried: Set<string>
  readonly #copied: Set<string>
  /** By name: of the primary, and not on the link. */
  readonly #offers = new Map<string, Offer>()
  /** Bytes of the primary's disks, by name, as far as it told: they may have grown. */
  readonly #sizes: Map<string, number>

  /** @param everything all disks that both sides have are sent as a whole, as one */
  constructor(source: Hello, target: Hello, everything: boolean) {
    const common = commonDisks(source, target)
    this.#sizes = new Map(source.disks.map(({ name, size }) => [name, size]))
    this.#carried = new Set(common.map(({ name }) => name))
    this.#copied = new Set(
      common.filter(({ copies }) => copies && !everything).map(({ name }) => name),
    )
    this.#names = source.disks.map(({ name }) => (this.#carried.has(name) ? name : null))
    for (const [number, { name, size, apart }] of source.disks.entries())
      if (apart === 'new' && !this.#carried.has(name)) this.#offers.set(name, { number, size })
  }

  /** The name of the disk that the primary means; null: none that is of concern here; undefined: it never named it. */
  nameOf(number: number): string | null | undefined {
    return this.#names[number]
  }

  /** The primary's number of a disk, or -1. */
  numberOf(name: string): number {
    return this.#names.indexOf(name)
  }

  /** The name of a disk that is offered under that number. */
  offered(number: number): string | undefined {
    for (const [name, offer] of this.#offers) if (offer.number === number) return name
    return undefined
  }

  offer(name: string, offer: Offer): void {
    this.#offers.set(name, offer)
    this.#sizes.set(name, offer.size)
    this.#names[offer.number] ??= null
  }

  /** Takes what is offered and fits a disk that is here. @returns the numbers of what was taken, and the sizes here */
  accept(disks: readonly DiskIdentity[]): Offer[] {
    return disks.flatMap(({ name, size }) => {
      const offer = this.#offers.get(name)
      if (offer === undefined || offer.size > size) return []
      this.#offers.delete(name)
      this.#unnumber(name)
      this.#names[offer.number] = name
      this.#carried.add(name)
      this.#copied.add(name)
      return [{ number: offer.number, size }]
    })
  }

  /** The primary has a disk no longer. */
  withdraw(name: string): void {
    this.drop(name)
    this.#offers.delete(name)
  }

  /** A disk is not on the link any more; what is offered of it still is. */
  drop(name: string): void {
    this.#unnumber(name)
    this.#carried.delete(name)
    this.#copied.delete(name)
  }

  /** What is still on its way under a number that it had is of no concern. */
  #unnumber(name: string): void {
    const number = this.numberOf(name)
    if (number !== -1) this.#names[number] = null
  }

  /** Bytes of a disk that a checkpoint which is made now has, at least; 0 where it has nothing of it. */
  sizeOf(name: string): number {
    return this.#carried.has(name) && !this.#copied.has(name) ? (this.#sizes.get(name) ?? 0) : 0
  }

  /** All of a disk was sent. */
  complete(name: string): void {
    this.#copied.delete(name)
  }

  /** What does not count in a checkpoint that is made now. */
  apart(disks: readonly DiskIdentity[]): ApartDisks {
    const names = disks.map(({ name }) => name)
    const apart = names.filter((name) => !this.#carried.has(name) || this.#copied.has(name))
    return Object.fromEntries(apart.map((name) => [name, 'partial' as const]))
  }
}
