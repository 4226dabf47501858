/** What a soak has done and found so far: a fixed amount of memory, however long it runs. */

import { MiB } from '../../core/units.ts'
import type { CheckpointResult } from '../../replication/group.ts'
import type { GuestCounts } from './guests.ts'
import { Histogram } from './histogram.ts'

/** Bytes: what a pair has to send again falls into classes of up to so many, and each time so many times more. */
const SMALLEST_CLASS = MiB
const CLASS_STEP = 4

export class Tally {
  /** Rounds that were verified, by what happened in them. */
  readonly rounds = new Map<string, number>()
  readonly violations: string[] = []
  /** Microseconds. */
  readonly pause = new Histogram()
  readonly commit = new Histogram()
  /** From the moment in which all was well again until the pair was protected again. */
  readonly healing = new Histogram()
  /** The same by how much data had to be sent for that: by the most bytes of a class. */
  readonly healingBySize = new Map<number, Histogram>()
  /** Bytes of data that were sent again. */
  resentBytes = 0
  /** From the promote command to the first request served. */
  readonly takeover = new Histogram()
  /** Checkpoints that were asked for and not known to be committed. */
  unconfirmed = 0
  /** Bytes that were compared with the model. */
  compared = 0
  #guests: GuestCounts = { writes: 0, bytesWritten: 0, reads: 0 }

  get guests(): GuestCounts {
    return this.#guests
  }

  get finishedRounds(): number {
    return [...this.rounds.values()].reduce((sum, count) => sum + count, 0)
  }

  countRound(kind: string): void {
    this.rounds.set(kind, (this.rounds.get(kind) ?? 0) + 1)
  }

  countCheckpoint({ pauseUs, commitUs }: CheckpointResult): void {
    this.pause.add(pauseUs)
    this.commit.add(commitUs)
  }

  countHealing(microseconds: number, movedBytes: number): void {
    this.healing.add(microseconds)
    this.resentBytes += movedBytes
    let most = SMALLEST_CLASS
    while (most < movedBytes) most *= CLASS_STEP
    const times = this.healingBySize.get(most) ?? new Histogram()
    this.healingBySize.set(most, times)
    times.add(microseconds)
  }

  countGuests({ writes, bytesWritten, reads }: GuestCounts): void {
    const before = this.#guests
    this.#guests = {
      writes: before.writes + writes,
      bytesWritten: before.bytesWritten + bytesWritten,
      reads: before.reads + reads,
    }
  }
}
