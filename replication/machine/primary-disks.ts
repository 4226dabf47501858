/**
 * Disks that come, grow and go while a primary runs: what the secondary is told of them, and the copy, beside the stream, of
 * those that it takes. Which disk is how far, and under which number, is kept in carried-disks.ts.
 *
 * Invariants:
 *  - The secondary is told of a disk only on a link whose hellos were exchanged, and only if it knows such news at all.
 *  - One copy is under way at a time; the secondary hears `complete` of a disk after all of it, in the same ordered stream,
 *    and in front of the marker with which the disk counts.
 *  - No number of a disk has two meanings on a link: who runs out of them ends it.
 */

import type { CarriedDisks } from './carried-disks.ts'
import type { ChangedBlocks } from './changed-blocks.ts'
import { frame } from './frame.ts'
import { encodeDisk, type DiskIdentity, type Hello } from './handshake.ts'
import type { PrimaryInput } from './primary-io.ts'
import type { PrimaryOutbox } from './primary-outbox.ts'
import type { PrimaryStanding } from './primary-standing.ts'
import type { ResyncTerms } from './resync-terms.ts'

type DiskNews = Pick<Extract<PrimaryInput, { type: 'disk-news' }>, 'news' | 'number' | 'size'>

/** The largest number that a frame has room for. */
const MOST_NUMBER = 0xffff

/** What the primary's rooms have in common that is of concern here. */
interface Rooms {
  readonly self: PrimaryStanding
  readonly carried: CarriedDisks
  readonly changed: ChangedBlocks
  readonly resync: ResyncTerms
  readonly out: PrimaryOutbox
}

export class PrimaryDisks {
  readonly #rooms: Rooms
  /** Whether a secondary is there that takes news of disks. */
  #tells = false

  constructor(rooms: Rooms) {
    this.#rooms = rooms
  }

  /** Hellos were exchanged. */
  greet({ features }: Hello): void {
    this.#tells = features.includes('disks')
  }

  /** The link is gone. */
  down(): void {
    this.#tells = false
  }

  /** The group has one more. @returns why the link has to end, if it has to */
  add(disk: DiskIdentity): string | undefined {
    const { carried, changed } = this.#rooms
    const index = carried.add(disk)
    changed.add(disk)
    return this.#offer(index)
  }

  /** @returns why the link has to end, if it has to */
  grow(index: number, size: number): string | undefined {
    const { carried, changed } = this.#rooms
    carried.grow(index, size)
    changed.grow(index, size)
    // What was offered tells of another size.
    return this.#offer(index)
  }

  remove(index: number): void {
    const { carried, changed, out } = this.#rooms
    if (this.#tells) out.send(frame('withdraw', { disk: carried.numberOf(index) }))
    carried.remove(index)
    changed.drop(index)
  }

  /** The secondary takes a disk, or does so no longer, or has made it larger. @returns why the link has to end, if it has to */
  hear({ news, number, size }: DiskNews): string | undefined {
    const { carried, out } = this.#rooms
    if (news === 'accept') {
      const offered = carried.offered(number)
      if (offered === -1 || carried.accept(offered, size)) return undefined
      return this.#offer(offered)
    }
    const index = carried.indexOf(number)
    // It may have been removed here in the meantime.
    if (index === -1) return undefined
    if (news === 'resized') {
      carried.learnSize(index, size)
      return undefined
    }
    carried.lose(index)
    out.add({ type: 'remember' })
    // It may come back.
    return this.#offer(index)
  }

  /** The secondary has all the rest: what it has taken is copied, unless a copy is under way. */
  copy(): void {
    const { carried, changed, resync, out } = this.#rooms
    if (!carried.mayCopy) return
    const session = resync.nextSession()
    const disks = carried.begin(session)
    for (const disk of disks) changed.unsendAll(disk)
    out.add({ type: 'resync', session, copies: false, compares: false, disks })
  }

  /** A copy is sent: it counts with the next checkpoint. */
  copied(): void {
    const { carried, self, out } = this.#rooms
    for (const disk of carried.end(self.announced + 1)) out.send(frame('complete', { disk }))
    this.copy()
  }

  /** Tells the secondary of a disk that it may take, if it is one. */
  #offer(index: number): string | undefined {
    if (!this.#tells) return undefined
    const { carried, out } = this.#rooms
    const offer = carried.offer(index)
    if (offer === undefined) return undefined
    const { number, disk } = offer
    if (number > MOST_NUMBER) return 'the numbers of disks are used up'
    out.send(frame('offer', { disk: number, payload: encodeDisk(disk) }))
    return undefined
  }
}
