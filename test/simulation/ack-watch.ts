/** Watches what the two sides say of data, and which guests' writes complete by it. */

import type { Ack } from '../../replication/group.ts'
import { encodeFrame, type Frame } from '../../replication/machine/frame.ts'
import type { JournalDisk } from './segments.ts'

/** Disks of a simulated group. */
const MOST_DISKS = 3

export class AckWatch {
  readonly #ack: Ack
  /** Data frames of the present link. */
  #frames: Frame[] = []
  #count = 0
  /** The frame that carries a write, by its tag. */
  readonly #positions = new Map<number, number>()
  #acknowledged = 0
  /** Numbers of disks that the secondary has removed: what comes for them is taken, and forgotten. */
  readonly #removed = new Set<number>()
  /** Whether the secondary has begun with the present link: before, it speaks of another one. */
  #answered = false

  constructor(ack: Ack) {
    this.#ack = ack
  }

  primarySends(frame: Readonly<Frame>): void {
    if (frame.type === 'hello') {
      this.#frames = []
      this.#count = 0
      this.#positions.clear()
      this.#acknowledged = 0
      this.#answered = false
      this.#removed.clear()
    }
    if (frame.type !== 'write' && frame.type !== 'zero') return
    this.#count += 1
    // Which frames they are matters where a write waits for one.
    if (this.#ack === 'sent') return
    this.#frames.push({ ...frame, payload: Buffer.from(frame.payload) })
    if (frame.type !== 'write') return
    const tag = frame.payload.readInt32LE(0)
    // A resync may send the same content again: the write itself comes before it.
    if (!this.#positions.has(tag)) this.#positions.set(tag, this.#frames.length)
  }

  /** @returns what is wrong with what the secondary says, if anything */
  secondarySends(
    { type, position, disk: number }: Readonly<Frame>,
    journal: JournalDisk,
  ): string | undefined {
    if (type === 'hello') this.#answered = true
    if (this.#answered && type === 'withdraw') this.#removed.add(number)
    if (!this.#answered || (type !== 'received' && type !== 'stored')) return undefined
    if (this.#ack === 'sent' && type === 'stored') return 'stored is said, and nobody asked'
    if (position > this.#count) return `${type}(${position}) of ${this.#count} frames`
    if (position <= this.#acknowledged) return `${type}(${position}) says nothing new`
    this.#acknowledged = position
    if (this.#ack === 'sent') return undefined
    const last = this.#frames[position - 1]
    if (last === undefined) return `${type}(${position}) of ${this.#frames.length} frames`
    if (type === 'received' || this.#removed.has(last.disk)) return undefined
    // The journal numbers disks as its own side does.
    const records = Array.from({ length: MOST_DISKS }, (_, disk) => encodeFrame({ ...last, disk }))
    // What is said of a frame may be said when its epoch is in the images already, and its segment gone.
    const durable = [...journal.files.values(), journal.removed].some((file) =>
      file?.durable.some((bytes) => records.some((record) => bytes.includes(record))),
    )
    return durable ? undefined : `stored(${position}) before the journal has it`
  }

  /** @returns what is wrong with the completion of a guest's write while its group is protected, if anything */
  completed(tag: number): string | undefined {
    const position = this.#positions.get(tag)
    if (this.#ack === 'sent' || position === undefined || position <= this.#acknowledged)
      return undefined
    return `write ${tag}, frame ${position}, completed at acknowledgement ${this.#acknowledged}`
  }
}
