/** The guest of a pair's primary: one workload on each disk. */

import { below, seededRandom, type Random } from '../../core/seeded-random.ts'
import { attach, type Side } from './side.ts'
import type { SoakDisk } from './soak-disk.ts'
import { patiently, Violation } from './violation.ts'
import { Workload } from './workload.ts'

export interface GuestCounts {
  readonly writes: number
  readonly bytesWritten: number
  readonly reads: number
}

export class Guests {
  /** What was read back and was not what had been acknowledged. */
  readonly violations: string[] = []
  readonly #workloads: Workload[] = []
  readonly #watchers = new Set<() => void>()
  #running: Promise<unknown> = Promise.resolve()
  #ended = false
  #counted: GuestCounts = { writes: 0, bytesWritten: 0, reads: 0 }

  /** Begins to use every disk of `primary`, with `lanes` requests in flight on each. */
  static async start(
    primary: Side,
    disks: readonly SoakDisk[],
    lanes: number,
    random: Random,
  ): Promise<Guests> {
    const guests = new Guests()
    for (const { name, history, used } of disks) {
      const client = await attach(primary, name)
      const workload = new Workload({
        ...{ client, history, lanes, blocks: used },
        random: seededRandom(below(random, 2 ** 32)),
        onWrite: () => guests.#look(),
        onViolation: (violation) => {
          if (guests.violations.length < 10) guests.violations.push(`disk ${name}: ${violation}`)
        },
      })
      guests.#workloads.push(workload)
    }
    guests.#running = Promise.all(
      guests.#workloads.map(async (workload) => {
        await workload.run()
        guests.#ended = true
        guests.#look()
      }),
    )
    return guests
  }

  /** What was done since the last call. */
  takeCounts(): GuestCounts {
    const [now, before] = [this.counts, this.#counted]
    this.#counted = now
    return {
      writes: now.writes - before.writes,
      bytesWritten: now.bytesWritten - before.bytesWritten,
      reads: now.reads - before.reads,
    }
  }

  get counts(): GuestCounts {
    const total = (of: (workload: Workload) => number): number =>
      this.#workloads.reduce((sum, workload) => sum + of(workload), 0)
    return {
      writes: total(({ writes }) => writes),
      bytesWritten: total(({ bytesWritten }) => bytesWritten),
      reads: total(({ reads }) => reads),
    }
  }

  /** Resolves when so many more writes were acknowledged. @throws Violation when they are not */
  async after(writes: number): Promise<void> {
    const wanted = this.counts.writes + writes
    let look: () => void = () => undefined
    const reached = new Promise<void>((resolve, reject) => {
      look = () => {
        if (this.counts.writes >= wanted) resolve()
        else if (this.#ended) reject(this.#lost())
      }
      this.#watchers.add(look)
      look()
    })
    await patiently(reached, `the acknowledgement of ${writes} writes`).finally(() =>
      this.#watchers.delete(look),
    )
  }

  /** Pauses them, as a toolstack pauses a VM: no new requests until the function returned is called. */
  hold(): () => void {
    const resumes = this.#workloads.map((workload) => workload.hold())
    return () => {
      for (const resume of resumes) resume()
    }
  }

  /** Resolves when they are held and nothing is in flight. @throws Violation when a request failed */
  async idle(): Promise<void> {
    const idle = Promise.all(this.#workloads.map((workload) => workload.idle()))
    await patiently(idle, 'the answer to every request of the guest')
    if (this.#ended) throw this.#lost()
  }

  /** They die with their host: requests in flight are never answered. */
  async die(): Promise<void> {
    for (const workload of this.#workloads) {
      workload.stop()
      workload.abandon()
    }
    await this.#running
  }

  #lost(): Violation {
    const failure = this.#workloads.find((workload) => workload.failure !== undefined)?.failure
    const reason = failure instanceof Error ? failure.message : 'it was ended'
    return new Violation(`the guest lost its disk: ${reason}`)
  }

  #look(): void {
    for (const look of this.#watchers) look()
  }
}
