/**
 * Finds out what a journal holds, however its writer ended.
 *
 * Invariants:
 *  - A checkpoint that was reported as committed is found, whole, or the journal is refused as damaged.
 *  - What follows the last checkpoint record that counts never happened: an unfinished epoch, a torn tail.
 *  - Scanning changes nothing, so a crash during recovery leaves all as it was.
 */

import { Fault } from '../../core/fault.ts'
import { KiB, MiB } from '../../core/units.ts'
import { decodeFrame, frame, HEADER_SIZE, MAX_PAYLOAD, type Frame } from '../machine/frame.ts'
import type { DiskIdentity } from '../machine/handshake.ts'
import type { ReplicaState } from '../machine/replica-state.ts'
import { decodeSegmentHeader, decodeState, type SegmentHeader } from './records.ts'
import type { SegmentStore } from './segments.ts'

/** Bytes [from, to) of a segment, whole records. */
interface Stretch {
  readonly segment: number
  /** In the order in which its records number them: disks come and go with a new segment. */
  readonly disks: readonly DiskIdentity[]
  readonly from: number
  readonly to: number
}

export interface RecoveredEpoch {
  readonly checkpoint: number
  readonly stretches: readonly Stretch[]
}

export interface Recovered {
  /** Of the newest segment. */
  readonly header: SegmentHeader
  readonly state: ReplicaState
  /** The last checkpoint that counts. */
  readonly committed: number
  /** By disk, in the order of the header. */
  readonly flushed: readonly number[]
  /** Committed epochs that may not be in the images yet, oldest first. */
  readonly epochs: readonly RecoveredEpoch[]
  /** Each segment with the last checkpoint that needs it, ascending. */
  readonly segments: readonly {
    readonly number: number
    readonly neededBy: number
    readonly bytes: number
  }[]
}

/** Bytes read at a time; a record always fits. */
const WINDOW = 1 * MiB + MAX_PAYLOAD + HEADER_SIZE
/** The same at first: most of what is looked at is short, and so much memory has to be got, and given back, each time. */
const FIRST_WINDOW = 128 * KiB

/** @returns undefined when there is no journal yet. @throws Fault when it is damaged or cannot be read */
export async function scan(store: SegmentStore): Promise<Recovered | undefined> {
  const numbers = await store.list()
  const scanner = new Scanner(store)
  for (const [index, number] of numbers.entries()) {
    const before = numbers[index - 1]
    if (before !== undefined && number !== before + 1)
      throw damaged(store, `segment ${before + 1} is missing`)
    await scanner.segment(number, index === numbers.length - 1)
  }
  return scanner.result()
}

/** Gives every record of the epochs, in order, to `apply`, and tells where each epoch ends. */
export async function replay(
  store: SegmentStore,
  epochs: readonly RecoveredEpoch[],
  apply: (
    record: Frame,
    checkpoint: number,
    disks: readonly DiskIdentity[],
  ) => void | Promise<void>,
  ended: (checkpoint: number) => void | Promise<void>,
): Promise<void> {
  for (const { checkpoint, stretches } of epochs) {
    for (const { segment, from, to, disks } of stretches) {
      const end = await readRecords(store, segment, from, to, (record) =>
        apply(record, checkpoint, disks),
      )
      if (end !== to) throw damaged(store, `segment ${segment} has changed while it was read`)
    }
    await ended(checkpoint)
  }
}

class Scanner {
  readonly #store: SegmentStore
  #header: SegmentHeader | undefined
  #state: ReplicaState | undefined
  #committed = 0
  #epochs: RecoveredEpoch[] = []
  /** Of the epoch that is not finished. */
  #stretches: Stretch[] = []
  #segments: { number: number; neededBy: number | undefined; bytes: number }[] = []
  /** Bytes of the segment before that count. */
  #length = 0

  constructor(store: SegmentStore) {
    this.#store = store
  }

  async segment(number: number, last: boolean): Promise<void> {
    let from = 0
    let records = 0
    const segment = { number, neededBy: undefined, bytes: 0 }
    this.#segments.push(segment)
    const end = await readRecords(
      this.#store,
      number,
      0,
      Number.MAX_SAFE_INTEGER,
      (record, at, behind) => {
        records += 1
        if (records === 1) {
          if (record.type !== 'segment' || record.position !== number)
            throw damaged(this.#store, `segment ${number} does not begin with its header`)
          this.#begin(decodeSegmentHeader(record.payload), number)
          from = behind
          return
        }
        from = this.#take(record, this.#stretch(number, from, at), behind)
      },
    )
    if (records === 0) {
      // A crash came while the segment was being begun: nothing in it was ever reported. Ones before it go when it has its header.
      const isAlone = this.#segments.length === 1 && number > 1
      if (!last || isAlone || (await isFollowed(this.#store, number, 0, () => true)))
        throw damaged(this.#store, `segment ${number} has no header`)
      this.#segments.pop()
      return
    }
    if (from < end) this.#stretches.push(this.#stretch(number, from, end))
    this.#length = end
    segment.bytes = end
    // A torn tail was never reported; what was reported and is not there is damage.
    const wasDone = ({ type, position }: Frame): boolean =>
      type === 'done' && position > this.#committed
    if (last && (await isFollowed(this.#store, number, end, wasDone)))
      throw damaged(this.#store, `segment ${number} is broken after ${end} bytes`)
  }

  result(): Recovered | undefined {
    if (this.#header === undefined || this.#state === undefined) return undefined
    const least = Math.min(...this.#header.flushed)
    if (this.#committed < Math.max(...this.#header.flushed))
      throw damaged(this.#store, `checkpoints after ${this.#committed} are missing`)
    return {
      header: this.#header,
      state: this.#state,
      committed: this.#committed,
      flushed: this.#header.flushed,
      epochs: this.#epochs.filter(({ checkpoint }) => checkpoint > least),
      segments: this.#segments.map(({ number, neededBy, bytes }) => ({
        ...{ number, bytes },
        neededBy: neededBy ?? this.#committed,
      })),
    }
  }

  #begin(header: SegmentHeader, number: number): void {
    const first = this.#header === undefined
    this.#header = header
    this.#state = header.state
    if (first) {
      this.#committed = header.committed
      return
    }
    if (header.committed > this.#committed)
      throw damaged(
        this.#store,
        `checkpoint ${header.committed} is missing before segment ${number}`,
      )
    // A commit that failed was reported as failed, whether or not its record reached the disk.
    this.#committed = header.committed
    this.#epochs = this.#epochs.filter(({ checkpoint }) => checkpoint <= header.committed)
    if (header.previousLength === null) this.#drop()
    else if (header.previousLength !== this.#length)
      throw damaged(
        this.#store,
        `segment ${number - 1} ends after ${this.#length} of ${header.previousLength} bytes`,
      )
  }

  /** @param before the bytes since the last record that was not data. @returns where such bytes go on */
  #take(record: Frame, before: Stretch, behind: number): number {
    switch (record.type) {
      case 'write':
      case 'zero':
        return before.from
      case 'done':
        if (record.position > this.#committed)
          throw damaged(this.#store, `checkpoint ${record.position} is missing`)
        return before.from
      case 'checkpoint':
        if (record.position <= this.#committed)
          throw damaged(this.#store, `checkpoint ${record.position} comes after ${this.#committed}`)
        this.#keep(before)
        this.#state = decodeState(record.payload)
        this.#committed = record.position
        this.#epochs.push({ checkpoint: record.position, stretches: this.#stretches })
        this.#need(before.segment, record.position)
        for (const { segment } of this.#stretches) this.#need(segment, record.position)
        this.#stretches = []
        return behind
      case 'hello':
      case 'refuse':
      case 'heartbeat':
      case 'pressure':
      case 'segment':
      case 'dirty':
      case 'ready':
      case 'offer':
      case 'accept':
      case 'withdraw':
      case 'complete':
      case 'resized':
      case 'synced':
      case 'handover':
      case 'compare':
      case 'sums':
      case 'acknowledge':
      case 'received':
      case 'stored':
        throw damaged(this.#store, `a record of type ${record.type}`)
      case 'discard':
        this.#drop()
        return behind
      case 'state':
        this.#keep(before)
        this.#state = decodeState(record.payload)
        return behind
    }
  }

  #stretch(segment: number, from: number, to: number): Stretch {
    return { segment, disks: this.#header?.disks ?? [], from, to }
  }

  #need(segment: number, checkpoint: number): void {
    const found = this.#segments.find(({ number }) => number === segment)
    if (found !== undefined) found.neededBy = checkpoint
  }

  #keep(stretch: Stretch): void {
    if (stretch.from < stretch.to) this.#stretches.push(stretch)
  }

  #drop(): void {
    this.#stretches = []
  }
}

/**
 * Reads the records of [from, to) of a segment, as far as they are whole.
 * @returns where the first one begins that is not, or `to`, or the end of the segment
 */
async function readRecords(
  store: SegmentStore,
  segment: number,
  from: number,
  to: number,
  take: (record: Frame, at: number, behind: number) => void | Promise<void>,
): Promise<number> {
  let window = Buffer.allocUnsafeSlow(FIRST_WINDOW)
  const record = frame('heartbeat')
  let at = from
  for (;;) {
    const wanted = window.subarray(0, Math.min(window.length, to - at))
    const have = await store.read(segment, at, wanted)
    let used = 0
    while (used < have) {
      const behind = decodeOrNothing(window, used, have, record)
      if (behind === undefined) return at + used
      if (behind === -1) break
      await take(record, at + used, at + behind)
      used = behind
    }
    at += used
    if (at >= to || have < wanted.length) return at
    if (window.length < WINDOW) window = Buffer.allocUnsafeSlow(WINDOW)
    else if (used === 0) return at
  }
}

const MAGIC = Buffer.from([0xc0, 0x10])
/** Where the magic stands in a record. */
const MAGIC_AT = 4

/** Whether a whole record that `proves` something stands anywhere behind byte `from` of a segment. */
async function isFollowed(
  store: SegmentStore,
  segment: number,
  from: number,
  proves: (record: Frame) => boolean,
): Promise<boolean> {
  let window = Buffer.allocUnsafeSlow(FIRST_WINDOW)
  const record = frame('heartbeat')
  for (let at = from + 1; ;) {
    const have = await store.read(segment, at, window)
    if (have === window.length && have < WINDOW) {
      window = Buffer.allocUnsafeSlow(WINDOW)
      continue
    }
    const isLast = have < WINDOW
    // A record that begins in the last part of a full window may end behind it: it is looked at again, with the next one.
    const most = isLast ? have : have - MAX_PAYLOAD - HEADER_SIZE
    for (
      let found = window.indexOf(MAGIC, MAGIC_AT);
      found !== -1 && found - MAGIC_AT < most;
      found = window.indexOf(MAGIC, found + 1)
    ) {
      const behind = decodeOrNothing(window, found - MAGIC_AT, have, record)
      if (behind !== undefined && behind !== -1 && proves(record)) return true
    }
    if (isLast) return false
    at += most
  }
}

/** @returns as decodeFrame, but undefined where no record can be: what a torn write leaves is no fault */
function decodeOrNothing(
  bytes: Buffer,
  start: number,
  end: number,
  out: Frame,
): number | undefined {
  try {
    return decodeFrame(bytes, start, end, out)
  } catch (error) {
    if (error instanceof Fault && error.code === 'PROTOCOL') return undefined
    throw error
  }
}

function damaged(store: SegmentStore, what: string): Fault {
  return new Fault('IO', `the journal is damaged: ${what}`, {
    where: store.place,
    remedy:
      'the images below it are not a checkpoint: start this side anew from a copy of the primary, with this folder moved away',
  })
}
