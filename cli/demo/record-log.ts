/**
 * A guest that never rests: it appends numbered records to a ring on its disk, several in flight, while checkpoints
 * happen around it. Afterwards the ring tells which writes a disk holds.
 *
 * Invariant: record i is issued only after record i - SLOTS was acknowledged, so a slot's number says what came last.
 */

import { crc32 } from '../../core/crc32.ts'
import { Fault } from '../../core/fault.ts'
import { KiB } from '../../core/units.ts'

const RECORD = 4 * KiB
const SLOTS = 4096
const IN_FLIGHT = 8

/** Bytes of the disk that the ring covers; what lies behind it is free for other uses. */
export const RING_SIZE = RECORD * SLOTS

/** What a disk may hold: every record up to `acknowledged`, none above `issued`. */
export interface LogBounds {
  readonly acknowledged: number
  readonly issued: number
}

export class RecordLog {
  readonly #write: (from: Buffer, at: number) => void | Promise<void>
  readonly #lanes: Promise<void>[]
  /** Numbers under way: everything below their minimum is acknowledged. */
  readonly #underWay = new Set<number>()
  #issued = 0
  #stopped = false

  /** @param write writes to the disk; when it fails the guest is taken to have died with its host */
  constructor(write: (from: Buffer, at: number) => void | Promise<void>) {
    this.#write = write
    this.#lanes = Array.from({ length: IN_FLIGHT }, () => this.#lane())
  }

  get issued(): number {
    return this.#issued
  }

  /** Every record up to this number was acknowledged. */
  get acknowledged(): number {
    let lowest = this.#issued + 1
    for (const number of this.#underWay) lowest = Math.min(lowest, number)
    return lowest - 1
  }

  async stop(): Promise<void> {
    this.#stopped = true
    await Promise.all(this.#lanes)
  }

  async #lane(): Promise<void> {
    const record = Buffer.alloc(RECORD)
    while (!this.#stopped) {
      this.#issued += 1
      const number = this.#issued
      this.#underWay.add(number)
      fillRecord(record, number)
      try {
        await this.#write(record, ((number - 1) % SLOTS) * RECORD)
      } catch {
        return
      }
      this.#underWay.delete(number)
    }
  }
}

/** @returns how many records were found; @throws Fault when the ring holds anything that the bounds forbid */
export function checkRing(ring: Buffer, { acknowledged, issued }: LogBounds): number {
  let found = 0
  for (let slot = 0; slot < SLOTS; slot += 1) {
    const number = recordIn(ring.subarray(slot * RECORD, (slot + 1) * RECORD), slot)
    const newestSure = acknowledged - ((acknowledged - 1 - slot + SLOTS) % SLOTS)
    if (number < newestSure)
      throw new Fault(
        'IO',
        `slot ${slot} holds record ${number}, but record ${newestSure} was acknowledged before the checkpoint`,
      )
    if (number > issued)
      throw new Fault(
        'IO',
        `slot ${slot} holds record ${number}, which was issued after the checkpoint`,
      )
    if (number > 0) found += 1
  }
  return found
}

function fillRecord(record: Buffer, number: number): void {
  record.fill(number & 0xff)
  record.writeDoubleBE(number, 0)
  record.writeUInt32BE(crc32(record.subarray(12), crc32(record.subarray(0, 8))), 8)
}

/** The number of the record in a slot, 0 when it was never written. */
function recordIn(record: Buffer, slot: number): number {
  const number = record.readDoubleBE(0)
  if (number === 0) return 0
  const whole = record.readUInt32BE(8) === crc32(record.subarray(12), crc32(record.subarray(0, 8)))
  if (!whole || (number - 1) % SLOTS !== slot)
    throw new Fault('IO', `slot ${slot} holds a torn or misplaced record`)
  return number
}
