/**
 * What a disk may hold that has left a secondary. Mostly that is a checkpoint. But the primary may have removed the disk while the
 * secondary waited for its image: then it is what the primary had of it; and it may have added it anew: then nobody has promised
 * anything of it before all of that was sent.
 */

import { PARTIAL, type Frame } from '../../replication/machine/frame.ts'
import {
  decodeDisk,
  decodeHello,
  verdictOn,
  type Hello,
} from '../../replication/machine/handshake.ts'
import type { Contents } from './look.ts'
import type { Content } from './sectors.ts'
import { diskName } from './side-disks.ts'

/** A disk as the stream has it. */
interface Numbered {
  readonly name: string
  /** Whether it is sent as a whole, and is not yet. */
  copies: boolean
}

interface Withdrawn {
  readonly name: string
  /** The newest marker before. */
  readonly after: number
  readonly content: Content
}

/** A disk that has left: its removal began at checkpoint `since`, and ended at checkpoint `until`. */
interface Departure {
  readonly slot: number
  readonly since: number
  readonly until: number
  readonly content: Content
}

export class Departures {
  /** The primary's, of the present link. */
  #hello: Hello | undefined
  /** By the number that the present link knows them by. */
  #numbered: Numbered[] = []
  /** The newest marker that was sent. */
  #marker = 0
  /** Disks of which the secondary is sent a copy, or was sent a part of one. */
  readonly #mixed = new Set<string>()
  /** Markers at which the secondary has no state of some disks: of these, or of none at all. */
  readonly #mixtures = new Map<number, ReadonlySet<string> | 'all'>()
  readonly #withdrawn: Withdrawn[] = []

  /** @param images the primary's, by slot, as they are now */
  primarySends(frame: Readonly<Frame>, images: readonly { readonly completed: Content }[]): void {
    const { type, disk: number, position, payload, flags } = frame
    if (type === 'hello') {
      this.#hello = decodeHello(payload)
      this.#numbered = this.#hello.disks.map(({ name }) => ({ name, copies: false }))
    }
    if (type === 'offer') this.#numbered[number] = { name: decodeDisk(payload).name, copies: true }
    if (type === 'checkpoint') {
      this.#marker = position
      this.#mixtures.set(position, (flags & PARTIAL) === 0 ? new Set(this.#mixed) : 'all')
    }
    const numbered = this.#numbered[number]
    if (numbered === undefined) return
    const { name } = numbered
    if ((type === 'write' || type === 'zero') && numbered.copies) this.#mixed.add(name)
    if (type === 'complete') {
      numbered.copies = false
      this.#mixed.delete(name)
    }
    if (type === 'withdraw') {
      const { completed } = images.find((_, slot) => diskName(slot) === name)!
      this.#withdrawn.push({ name, after: this.#marker, content: completed.slice() })
    }
  }

  /** What stands apart on either side is sent as a whole, where not all is. */
  secondarySends({ type, payload }: Readonly<Frame>): void {
    if (type !== 'hello' || this.#hello === undefined) return
    const theirs = decodeHello(payload)
    const verdict = verdictOn(this.#hello, theirs)
    if (verdict.kind !== 'refuse' && verdict.resync === 'everything') return
    for (const { name, apart } of [...this.#hello.disks, ...theirs.disks]) {
      const numbered = this.#numbered.find((each) => each.name === name)
      if (apart !== undefined && numbered !== undefined) numbered.copies = true
    }
  }

  /** Whether a disk that has left the secondary may be what it is. */
  allows(departure: Departure, snapshots: ReadonlyMap<number, Contents>): boolean {
    const { slot, since, until, content } = departure
    const name = diskName(slot)
    const isAs = (held: Content): boolean => held.every((tag, sector) => tag === content[sector])
    for (const [checkpoint, { [slot]: held }] of snapshots)
      if (checkpoint >= since && checkpoint <= until && held !== undefined && isAs(held))
        return true
    // What was sent before a disk was withdrawn comes with the next checkpoint.
    if (
      this.#withdrawn.some(
        (each) => each.name === name && each.after >= since && isAs(each.content),
      )
    )
      return true
    return [...this.#mixtures].some(
      ([checkpoint, mixed]) =>
        checkpoint > since && checkpoint <= until && (mixed === 'all' || mixed.has(name)),
    )
  }
}
