/**
 * Reads of an image through the layers of memory over it, right for each sector.
 *
 * The sectors that a layer holds are taken when the read is made, and only the others are read from the image. So no
 * layer is looked at after the read began, and it may be changed, flushed or dropped while the image is being read:
 *  - a held sector has the content it had when the read began;
 *  - a sector that no layer held then has its content in the image. It stays there: a layer forgets a sector only
 *    when the image has it, and whatever is written to the sector from then on is concurrent with the read, which
 *    may return either.
 * Reading all of the image first and overlaying the layers then would be wrong: a write that goes through to the
 * image meanwhile makes the layers forget a sector of which the read has already taken the image's older content.
 *
 * What a spilled layer holds is taken as the places of its records, which are pinned until they have been read.
 *
 * readRest() alone may also come later, for a reader who wants the content of the very instant of takeHeld() and keeps
 * others from writing to the gaps of the image until then.
 */

import type { BlockDevice } from '../core/block-device.ts'
import { ensure, isPromise, together, type MaybePromise } from '../core/maybe-promise.ts'
import type { Epoch } from './epoch.ts'
import { SpilledEpoch } from './spilled-epoch.ts'
import type { SpilledLoan, SpilledPiece } from './spilled-loan.ts'

/** What is read where no layer holds a sector: a BlockDevice, in all but tests. */
export type ReadTarget = Pick<BlockDevice, 'read'>

/** What may lie over an image. */
export type Layer = Epoch | SpilledEpoch

/** Reads of gaps between held sectors in flight at a time, for one request. */
const GAPS_IN_FLIGHT = 8

/** Fills `into` with what is at `at`: the newest layer's content of each sector that a layer holds, else the image's. */
export function readThrough(
  image: ReadTarget,
  layersOldestFirst: readonly Layer[],
  into: Buffer,
  at: number,
): MaybePromise<void> {
  const first = nextGap(layersOldestFirst, at, at + into.length)
  if (first.at === at && first.end === at + into.length) return image.read(into, at)
  return readRest(image, takeHeld(layersOldestFirst, into, at, first), into, at)
}

/** A run of sectors that no layer holds. */
export interface Gap {
  readonly at: number
  readonly end: number
}

/** What is not there yet of a read, found when it began, not between reads. */
export interface Rest {
  /** What the image has. */
  readonly gaps: readonly Gap[]
  /** What records have. */
  readonly loans: readonly SpilledLoan[]
}

const NO_LOANS: readonly SpilledLoan[] = []

/** Fills the sectors of `into` that are held in memory. @returns the others: readRest() has to be called for them */
export function takeHeld(
  layersOldestFirst: readonly Layer[],
  into: Buffer,
  at: number,
  first = nextGap(layersOldestFirst, at, at + into.length),
): Rest {
  const end = at + into.length
  for (const layer of layersOldestFirst) layer.overlay(into, at)
  const gaps: Gap[] = []
  for (let gap = first; gap.at < end; gap = nextGap(layersOldestFirst, gap.end, end)) gaps.push(gap)
  if (!layersOldestFirst.some(isSpilled)) return { gaps, loans: NO_LOANS }
  return { gaps, loans: lendAll(layersOldestFirst, at, end) }
}

function isSpilled(layer: Layer): layer is SpilledEpoch {
  return layer instanceof SpilledEpoch
}

/** What each spilled layer has of [at, end) that no newer layer holds. */
function lendAll(layersOldestFirst: readonly Layer[], at: number, end: number): SpilledLoan[] {
  const loans: SpilledLoan[] = []
  for (const [index, layer] of layersOldestFirst.entries()) {
    if (!isSpilled(layer)) continue
    const newer = layersOldestFirst.slice(index + 1)
    const pieces: SpilledPiece[] = []
    for (let gap = nextGap(newer, at, end); gap.at < end; gap = nextGap(newer, gap.end, end))
      pieces.push(...layer.pieces(gap.at, gap.end))
    if (pieces.length > 0) loans.push(layer.lend(pieces))
  }
  return loans
}

/** Fills what takeHeld() left. */
export function readRest(
  image: ReadTarget,
  { gaps, loans }: Rest,
  into: Buffer,
  at: number,
): MaybePromise<void> {
  if (loans.length === 0) return readGaps(image, gaps, into, at)
  return ensure(
    () =>
      together(1 + loans.length, (index) =>
        index === 0 ? readGaps(image, gaps, into, at) : loans[index - 1]?.fill(into, at),
      ),
    () => {
      for (const loan of loans) loan.end()
    },
  )
}

/** The first run of sectors in [from, end) that no layer holds; empty and at `end` where there is none. */
function nextGap(layers: readonly Layer[], from: number, end: number): Gap {
  let at = from
  while (at < end) {
    let held = at
    let until = end
    for (const layer of layers) {
      const same = layer.sameUntil(at, end)
      if (same > 0) held = Math.max(held, same)
      else until = Math.min(until, -same)
    }
    if (held === at) return { at, end: until }
    at = held
  }
  return { at: end, end }
}

/** Fills the gaps of `into` from the image. */
function readGaps(
  image: ReadTarget,
  gaps: readonly Gap[],
  into: Buffer,
  at: number,
): MaybePromise<void> {
  for (let next = 0; next < gaps.length; next += 1) {
    const read = readGap(image, gaps[next], into, at)
    if (isPromise(read)) return readGapsOn(image, gaps, next + 1, read, into, at)
  }
}

/** Goes on from gap `next` while `running` is under way. Ends only when no read uses `into` any more. */
async function readGapsOn(
  image: ReadTarget,
  gaps: readonly Gap[],
  next: number,
  running: Promise<void>,
  into: Buffer,
  at: number,
): Promise<void> {
  let failed: { error: unknown } | undefined
  const queue = gaps.slice(next).values()
  const worker = async (first: Promise<void> | undefined) => {
    try {
      await first
      for (const gap of queue) {
        if (failed !== undefined) return
        await readGap(image, gap, into, at)
      }
    } catch (error) {
      failed ??= { error }
    }
  }
  const workers = [worker(running)]
  for (let count = Math.min(GAPS_IN_FLIGHT, gaps.length - next); count > 1; count -= 1)
    workers.push(worker(undefined))
  await Promise.all(workers)
  if (failed !== undefined) throw failed.error
}

function readGap(
  image: ReadTarget,
  gap: Gap | undefined,
  into: Buffer,
  at: number,
): MaybePromise<void> {
  if (gap === undefined) return
  return image.read(into.subarray(gap.at - at, gap.end - at), gap.at)
}
