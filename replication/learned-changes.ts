/**
 * What a secondary has changed by itself before the link began, as its primary learns of it: the secondary tells, range by range,
 * once both have greeted each other.
 *
 * Invariants:
 *  - 15 What was told is marked on disk when remembered() resolves, which is before a resync sends any of it.
 *  - Nothing that is told is passed over, but of a disk that was removed here while it was on its way: what comes back under its
 *    name is another disk, and copied as a whole.
 */

import { Fault } from '../core/fault.ts'
import type { Frame } from './machine/frame.ts'
import type { PrimaryInput } from './machine/primary-io.ts'
import type { PrimaryMachine } from './machine/primary.ts'
import type { TrackedDisk } from './primary-side.ts'

export class LearnedChanges {
  readonly #machine: PrimaryMachine
  readonly #disks: readonly TrackedDisk[]
  /** On their way to the maps on disk. */
  #marks: Promise<void>[] = []

  /** @param disks by index; others are added to them */
  constructor(machine: PrimaryMachine, disks: readonly TrackedDisk[]) {
    this.#machine = machine
    this.#disks = disks
  }

  /** The secondary tells of a range. @returns what the machine is to be told. @throws Fault PROTOCOL to end the link */
  hear({ disk: number, position: at, extent }: Frame, nowMs: number): PrimaryInput {
    const index = this.#machine.meant(number)
    if (index === 'removed') return { type: 'heartbeat', nowMs }
    const disk = index === undefined ? undefined : this.#disks[index]
    if (index === undefined || disk === undefined)
      throw new Fault(
        'PROTOCOL',
        `the secondary told of a change of disk ${number}, which is not on the link`,
      )
    const { size } = disk.below.geometry
    const there = Math.max(size, this.#machine.sizeThere(index) ?? 0)
    if (extent === 0 || at + extent > there)
      throw new Fault('PROTOCOL', 'the secondary told of a change beyond a disk')
    // What it has behind this side's end is in no checkpoint of this side's.
    const length = Math.min(extent, size - at)
    if (length <= 0) return { type: 'heartbeat', nowMs }
    if (!disk.regions.has(at, length)) this.#mark(disk, at, length)
    return { type: 'changed', nowMs, disk: index, at, length }
  }

  /** What was told until now, as a promise that rejects when it cannot be marked; what is told from now on is of the next one. */
  async remembered(): Promise<void> {
    const marks = this.#marks
    this.#marks = []
    await Promise.all(marks)
  }

  /** A link begins, on which everything is told again. */
  forget(): void {
    this.#marks = []
  }

  #mark(disk: TrackedDisk, at: number, length: number): void {
    const marked = disk.regions.mark(at, length)
    // Nobody asks for it any more where the link is lost first.
    marked.catch(() => undefined)
    this.#marks.push(marked)
  }
}
