/**
 * The disks of a primary: which of them the stream to the secondary carries, under which number, and the copies of those that
 * were added while the group ran.
 *
 * Invariants:
 *  - A disk keeps its index for as long as this side is a primary; one that was removed leaves a gap.
 *  - A disk that stands apart is copied anew on each link; it counts when a checkpoint that follows its whole copy is done.
 *  - A copy puts at most its share of the secondary's memory into one epoch.
 */

import { assert } from '../../core/assert.ts'
import { commonDisks, without, type ApartDisks, type HelloDisk } from './disk-sets.ts'
import type { DiskIdentity, Hello } from './handshake.ts'

/** What a copy may put into one epoch, as a share of what the secondary can hold. */
const COPY_SHARE = 0.25

interface Disk {
  readonly name: string
  size: number
  gone: boolean
  /** The number that the present link knows it by; undefined while there is none. */
  number: number | undefined
  /** How far it is on the present link: with a copy of its own, or (`settling`) with all others. */
  state: 'absent' | 'awaited' | 'copying' | 'sent' | 'settling' | 'carried'
  /** Bytes on the secondary. */
  peerSize: number
}

/** States in which the secondary has a disk in no checkpoint, whatever it has of the others. */
const COPIED: ReadonlySet<Disk['state']> = new Set(['awaited', 'copying', 'sent'])

export class CarriedDisks {
  readonly #disks: Disk[] = []
  #apart: ApartDisks
  #numbers = 0
  /** The resync that copies, and the number of the checkpoint with which what it sent counts. */
  #session: number | undefined
  #countsWith: number | undefined
  #share = 0
  /** Bytes of copies in the epoch of that number. */
  #bytes = 0
  #epoch = 0

  constructor(disks: readonly DiskIdentity[], apart: ApartDisks) {
    for (const disk of disks) this.#push(disk)
    this.#apart = apart
  }

  /** Disks that no checkpoint has. */
  get apart(): ApartDisks {
    return this.#apart
  }

  /** The same, and those that the other side alone has in none: it gets a copy of them on the present link. */
  get lacking(): ApartDisks {
    const copied = this.#disks.filter(({ state }) => COPIED.has(state))
    return { ...Object.fromEntries(copied.map(({ name }) => [name, 'new'])), ...this.#apart }
  }

  get hello(): HelloDisk[] {
    return this.#disks
      .filter(({ gone }) => !gone)
      .map(({ name, size }) => {
        const apart = this.#apart[name]
        return apart === undefined ? { name, size } : { name, size, apart }
      })
  }

  /** What is to be copied beside the stream, by index. */
  get awaited(): number[] {
    return this.#indexes('awaited')
  }

  get carried(): number[] {
    return this.#indexes('carried')
  }

  /** Whether the stream carries changes of a disk. Hot path. */
  carries(index: number): boolean {
    const state = this.#of(index).state
    return state !== 'absent' && state !== 'awaited'
  }

  numberOf(index: number): number {
    const { number } = this.#of(index)
    assert(number !== undefined, 'what is carried has a number')
    return number
  }

  /** The index of the disk that the secondary means, or -1. */
  indexOf(number: number): number {
    return this.#disks.findIndex((disk) => disk.number === number && disk.state !== 'absent')
  }

  /**
   * The index of the disk that the secondary means, where that may have crossed the removal of the disk here.
   * @returns undefined where the link carries no disk under that number, and did not
   */
  meant(number: number): number | 'removed' | undefined {
    const removed = this.#disks.some((disk) => disk.number === number && disk.gone)
    if (removed) return 'removed'
    const index = this.indexOf(number)
    return index === -1 ? undefined : index
  }

  /** A link begins: numbers are those of the places in the hello. */
  number(): void {
    this.#numbers = 0
    for (const disk of this.#disks) {
      disk.state = 'absent'
      disk.number = disk.gone ? undefined : this.#numbers++
    }
  }

  /** @param everything all disks that both sides have are sent as a whole, as one */
  greet(source: Hello, target: Hello, everything: boolean): void {
    for (const { name, copies, size } of commonDisks(source, target)) {
      const disk = this.#disks.find((each) => each.name === name && !each.gone)
      if (disk === undefined) continue
      disk.state = copies && !everything ? 'awaited' : 'carried'
      disk.peerSize = size
    }
    this.#share = Math.floor(target.capacity * COPY_SHARE)
  }

  /** The link is gone. */
  down(): void {
    this.#session = undefined
    this.#countsWith = undefined
    for (const disk of this.#disks) disk.state = 'absent'
  }

  /** @returns its index */
  add(disk: DiskIdentity): number {
    this.#push(disk)
    this.#apart = { ...this.#apart, [disk.name]: 'new' }
    return this.#disks.length - 1
  }

  /**
   * What is to be offered of a disk, under a number of its own: what was said under an earlier one is about an earlier offer.
   * @returns undefined where nothing is: the stream carries it, or what is here is no state of it
   */
  offer(index: number): { readonly number: number; readonly disk: DiskIdentity } | undefined {
    const disk = this.#of(index)
    if (disk.gone || disk.state !== 'absent' || this.#apart[disk.name] !== 'new') return undefined
    disk.number = this.#numbers++
    return { number: disk.number, disk: { name: disk.name, size: disk.size } }
  }

  remove(index: number): void {
    const disk = this.#of(index)
    disk.gone = true
    disk.state = 'absent'
    this.#apart = without(this.#apart, disk.name)
  }

  /** The secondary has removed a disk: no checkpoint has it from now on. */
  lose(index: number): void {
    const disk = this.#of(index)
    disk.state = 'absent'
    this.#apart = { ...this.#apart, [disk.name]: 'new' }
  }

  grow(index: number, size: number): void {
    this.#of(index).size = size
  }

  /** The secondary says what size a disk has there. */
  learnSize(index: number, size: number): void {
    this.#of(index).peerSize = size
  }

  /** Bytes that a disk has on the secondary; undefined while no link carries it. */
  sizeThere(index: number): number | undefined {
    const { state, peerSize } = this.#of(index)
    return state === 'absent' ? undefined : peerSize
  }

  /** @returns the index of the disk that is offered under that number, or -1 */
  offered(number: number): number {
    return this.#disks.findIndex(
      (disk) =>
        disk.number === number &&
        !disk.gone &&
        disk.state === 'absent' &&
        this.#apart[disk.name] === 'new',
    )
  }

  /** The secondary takes a disk that it was offered. @returns false where it has become too small meanwhile */
  accept(index: number, peerSize: number): boolean {
    const disk = this.#of(index)
    if (peerSize < disk.size) return false
    disk.state = 'awaited'
    disk.peerSize = peerSize
    return true
  }

  /** @returns whether a copy can begin: one is under way at a time */
  get mayCopy(): boolean {
    return this.#session === undefined && this.#disks.some(({ state }) => state === 'awaited')
  }

  /** The copy of what is awaited begins. @returns the indexes */
  begin(session: number): number[] {
    this.#session = session
    const indexes = this.awaited
    for (const index of indexes) this.#of(index).state = 'copying'
    return indexes
  }

  /** The copy that is under way comes to nothing: another resync begins. */
  interrupt(): void {
    this.#session = undefined
    for (const disk of this.#disks) if (disk.state === 'copying') disk.state = 'awaited'
  }

  isCopy(session: number): boolean {
    return session === this.#session
  }

  /** The copy is sent: it counts with this checkpoint. @returns the numbers of the disks */
  end(checkpoint: number): number[] {
    const indexes = this.#indexes('copying')
    for (const index of indexes) this.#of(index).state = 'sent'
    this.#session = undefined
    this.#countsWith = checkpoint
    return indexes.map((index) => this.numberOf(index))
  }

  /** Everything that is carried counts with this checkpoint, if it did not before. */
  countWith(checkpoint: number): void {
    this.#countsWith = checkpoint
    for (const index of this.carried) this.#of(index).state = 'settling'
  }

  /** A checkpoint is done. @returns whether disks count now that did not */
  done(checkpoint: number): boolean {
    if (this.#countsWith === undefined || checkpoint < this.#countsWith) return false
    this.#countsWith = undefined
    let news = false
    for (const disk of this.#disks) {
      if (disk.state !== 'sent' && disk.state !== 'settling') continue
      disk.state = 'carried'
      news ||= this.#apart[disk.name] !== undefined
      this.#apart = without(this.#apart, disk.name)
    }
    return news
  }

  /** A copy has put so many bytes into the epoch. */
  spend(bytes: number, epoch: number): void {
    if (epoch !== this.#epoch) this.#bytes = 0
    this.#epoch = epoch
    this.#bytes += bytes
  }

  /** Whether a copy may put more into the epoch. */
  hasRoom(epoch: number): boolean {
    return epoch !== this.#epoch || this.#bytes < this.#share
  }

  #push({ name, size }: DiskIdentity): void {
    const fresh = { number: undefined, state: 'absent', peerSize: 0 } as const
    this.#disks.push({ name, size, gone: false, ...fresh })
  }

  #indexes(state: Disk['state']): number[] {
    return [...this.#disks.keys()].filter((index) => this.#disks[index]?.state === state)
  }

  #of(index: number): Disk {
    const disk = this.#disks[index]
    assert(disk !== undefined, 'a disk of the group has a number below their count')
    return disk
  }
}
