/**
 * A pair under load: its guest, its checkpoints, and what is known of both. A session lasts as long as one host stays the
 * primary; after a takeover another one begins where it ended.
 */

import type { Random } from '../../core/seeded-random.ts'
import { Checkpointer } from './checkpointer.ts'
import { CheckpointLog } from './checkpoint-log.ts'
import { Guests } from './guests.ts'
import type { Side } from './side.ts'
import type { SoakDisk } from './soak-disk.ts'
import type { Tally } from './tally.ts'
import { Violation } from './violation.ts'

export interface Sides {
  readonly mode: 'colo' | 'remus'
  readonly primary: Side
  readonly secondary: Side
}

export interface SessionOptions {
  readonly disks: readonly SoakDisk[]
  /** Requests in flight on each disk. */
  readonly lanes: number
  readonly intervalMs: number
  readonly random: Random
  readonly tally: Tally
}

export class Session {
  readonly guests: Guests
  readonly log: CheckpointLog
  readonly checkpointer: Checkpointer
  readonly #tally: Tally

  private constructor(
    guests: Guests,
    log: CheckpointLog,
    checkpointer: Checkpointer,
    tally: Tally,
  ) {
    this.guests = guests
    this.log = log
    this.checkpointer = checkpointer
    this.#tally = tally
  }

  /** Begins to write and to take checkpoints. */
  static async begin(
    { primary }: Sides,
    { disks, lanes, intervalMs, random, tally }: SessionOptions,
  ): Promise<Session> {
    const { checkpoint } = await primary.control.status()
    const log = new CheckpointLog(
      disks.map(({ history }) => history),
      checkpoint,
    )
    const guests = await Guests.start(primary, disks, lanes, random)
    const checkpointer = new Checkpointer({
      ...{ primary: primary.control, log, guests, intervalMs, tally },
    })
    checkpointer.start()
    return new Session(guests, log, checkpointer, tally)
  }

  /** Pauses the guest with nothing in flight, and takes no more checkpoints; the function returned goes on. */
  async quiesce(): Promise<() => void> {
    await this.checkpointer.stop()
    const resume = this.guests.hold()
    await this.guests.idle()
    this.checkGuests()
    return () => {
      resume()
      this.checkpointer.start()
    }
  }

  /** @throws Violation when the guest has read what it had not written */
  checkGuests(): void {
    const [violation] = this.guests.violations
    if (violation !== undefined) throw new Violation(violation)
  }

  /** Ends the guest and the checkpoints, whatever they are doing: their host is gone or about to go. */
  async end(): Promise<void> {
    try {
      await this.checkpointer.stop()
    } finally {
      await this.guests.die()
      this.countGuests()
    }
  }

  /** Adds what the guest has done since the last time to the tally. */
  countGuests(): void {
    this.#tally.countGuests(this.guests.takeCounts())
  }
}
