/** Which blocks of a group's disks may differ from the secondary's last checkpoint: a dirty map for each disk, cut to its size. */

import { assert } from '../../core/assert.ts'
import { DirtyMap, SENT, UNSENT } from './dirty-map.ts'
import type { DiskIdentity } from './handshake.ts'

/** A run of bytes on a disk. */
export interface Run {
  readonly at: number
  readonly length: number
}

export class ChangedBlocks {
  readonly #disks: { size: number; map: DirtyMap }[]

  constructor(disks: readonly DiskIdentity[]) {
    this.#disks = disks.map(({ size }) => ({ size, map: new DirtyMap() }))
  }

  add({ size }: DiskIdentity): void {
    this.#disks.push({ size, map: new DirtyMap() })
  }

  grow(disk: number, size: number): void {
    this.#of(disk).size = size
  }

  /** A disk has to be sent as a whole. */
  unsendAll(disk: number): void {
    const { map, size } = this.#of(disk)
    map.mark(0, size, UNSENT)
  }

  /** The disk is of no concern any more. */
  drop(disk: number): void {
    this.#of(disk).map = new DirtyMap()
  }

  /** Notes a change in an epoch that is never below an earlier call's. Hot path. */
  mark(disk: number, at: number, length: number, epoch: number): void {
    this.#of(disk).map.mark(at, length, epoch)
  }

  markAll(epoch: number): void {
    for (const { size, map } of this.#disks) map.mark(0, size, epoch)
  }

  /** A resync has sent a range. */
  sent(disk: number, at: number, length: number, epoch: number): void {
    this.#of(disk).map.sent(at, length, epoch)
  }

  /** Parts of a resync may be committed before the rest is sent: no commit makes clean what was not sent. */
  unsend(committed: number): void {
    for (const { map } of this.#disks) map.unsend(committed)
  }

  /** Gives back the memory of what a commit has made clean. */
  forget(committed: number): void {
    for (const { map } of this.#disks) map.forget(committed)
  }

  /** Whether any of these disks has a block that has to be sent. */
  anyUnsent(disks: readonly number[]): boolean {
    return disks.some((disk) => this.nextUnsent(disk, 0, 1) !== undefined)
  }

  unsentBytes(disk: number): number {
    return this.bytes(disk, SENT)
  }

  nextUnsent(disk: number, from: number, limit: number): Run | undefined {
    return this.next(disk, from, limit, SENT)
  }

  /** A range has to be sent, whatever is committed. */
  needs(disk: number, at: number, length: number): void {
    this.#of(disk).map.needs(at, length)
  }

  /** A range need not be sent any more: it is as in the stream, whose present epoch is `epoch`. */
  settle(disk: number, at: number, length: number, epoch: number): void {
    this.#of(disk).map.settle(at, length, epoch)
  }

  bytes(disk: number, committed: number): number {
    const { map, size } = this.#of(disk)
    return Math.min(map.dirtyBytes(committed), size)
  }

  /** The first dirty run at or after byte `from`, at most `limit` bytes long; undefined at the end. */
  next(disk: number, from: number, limit: number, committed: number): Run | undefined {
    const { map, size } = this.#of(disk)
    // The last run may end in the middle of a block: what lies behind it is that block again.
    if (from >= size) return undefined
    const run = map.nextDirty(from, limit, committed)
    return run === undefined
      ? undefined
      : { at: run.at, length: Math.min(run.length, size - run.at) }
  }

  #of(disk: number): { size: number; map: DirtyMap } {
    const found = this.#disks[disk]
    assert(found !== undefined, 'a disk of the group has a number below their count')
    return found
  }
}
