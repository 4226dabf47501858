/**
 * The primary's side of comparing disks over one link, while guests write to them.
 *
 * A question travels in the stream of writes: under the lock that guests' writes take, a range is read and the question sent.
 * The secondary answers with what its disk would hold if exactly what came before the question were committed. So both sides
 * speak of the same instant, and nobody has to wait for the answer: what is written later comes later in the stream, too.
 *
 * Invariants:
 *  - A range is called equal only when both sides had the same bytes at the same place of the stream.
 *  - A comparison whose link is gone says nothing any more.
 *  - At most MOST_ASKED questions of at most MOST_COMPARED bytes are open at a time: ASKERS may ask one each.
 */

import { assert } from '../../core/assert.ts'
import { Fault } from '../../core/fault.ts'
import { KiB } from '../../core/units.ts'
import type { Link } from '../environment.ts'
import { frame, type Frame } from '../machine/frame.ts'
import type { PrimaryDisk } from '../primary-disk.ts'
import { SUM_BLOCK, SUM_SIZE, type Summer } from './checksums.ts'

/** Bytes. A secondary ends the link of who asks for more, or more questions, at a time. */
export const MOST_COMPARED = 256 * KiB
export const MOST_ASKED = 16

export interface Range {
  readonly at: number
  readonly length: number
}

/** A range of a disk as both sides hold it, in runs. */
export interface Compared {
  readonly equal: readonly Range[]
  readonly different: readonly Range[]
  /** The secondary cannot read the range. It is all in `different` then: nothing shows it to be equal. */
  readonly unreadable: boolean
}

interface Question {
  readonly length: number
  readonly answered: Promise<Buffer | undefined>
  /** @param sums undefined when there will be none */
  readonly answer: (sums: Buffer | undefined) => void
}

export class Comparison {
  readonly #link: Link
  readonly #summer: Summer
  readonly #questions = new Map<string, Question>()
  #over = false

  constructor(link: Link, summer: Summer) {
    this.#link = link
    this.#summer = summer
  }

  /** The link is gone. */
  end(): void {
    this.#over = true
    for (const { answer } of this.#questions.values()) answer(undefined)
    this.#questions.clear()
  }

  /**
   * Fills `buffer` with what is at `at`, and compares that. Where the range is being asked about already, by one who does not
   * want to know any more, or where there are MOST_ASKED questions, it waits for an answer first.
   * @returns undefined when the link is gone, or does not carry the disk
   * @throws Fault when this side's image cannot be read
   */
  async compare(disk: PrimaryDisk, at: number, buffer: Buffer): Promise<Compared | undefined> {
    const { number } = disk
    if (number === undefined) return undefined
    const question = frame('compare', { disk: number, position: at, extent: buffer.length })
    let asked: readonly Promise<Buffer | undefined>[] = []
    while (asked.length === 0) {
      while (!this.#isFree(question))
        await Promise.race([...this.#questions.values()].map(({ answered }) => answered))
      if (this.#over || disk.number !== number) return undefined
      asked = await disk.capture(buffer, at, () =>
        this.#over || disk.number !== number || !this.#isFree(question)
          ? []
          : [this.#ask(question)],
      )
    }
    if (this.#isOver()) return undefined
    const ours = await this.#summer.sums(buffer)
    const theirs = await asked[0]
    return theirs === undefined ? undefined : runsOf(at, buffer.length, ours, theirs)
  }

  /** An answer came. @throws Fault to end the link */
  take({ disk, position, extent, payload }: Frame): void {
    const key = keyOf(disk, position)
    const question = this.#questions.get(key)
    if (question?.length !== extent)
      throw new Fault('PROTOCOL', 'the secondary sent checksums that nobody asked for')
    const expected = Math.ceil(extent / SUM_BLOCK) * SUM_SIZE
    if (payload.length !== expected && payload.length !== 0)
      throw new Fault(
        'PROTOCOL',
        `the secondary sent ${payload.length} bytes of checksums instead of ${expected}`,
      )
    this.#questions.delete(key)
    question.answer(Buffer.from(payload))
  }

  #isOver(): boolean {
    return this.#over
  }

  #isFree({ disk, position }: Frame): boolean {
    return this.#questions.size < MOST_ASKED && !this.#questions.has(keyOf(disk, position))
  }

  #ask(question: Frame): Promise<Buffer | undefined> {
    const { disk, position, extent } = question
    assert(this.#isFree(question), 'a range is asked about once at a time')
    let answer: Question['answer'] = () => undefined
    const answered = new Promise<Buffer | undefined>((resolve) => (answer = resolve))
    this.#questions.set(keyOf(disk, position), { length: extent, answered, answer })
    this.#link.send(question)
    return answered
  }
}

function keyOf(disk: number, position: number): string {
  return `${disk} ${position}`
}

/** @param theirs empty where the secondary cannot read */
function runsOf(at: number, length: number, ours: Buffer, theirs: Buffer): Compared {
  const equal: Range[] = []
  const different: Range[] = []
  for (let done = 0, place = 0; done < length; done += SUM_BLOCK, place += SUM_SIZE) {
    const end = place + SUM_SIZE
    const same = theirs.length >= end && ours.compare(theirs, place, end, place, end) === 0
    const piece = Math.min(SUM_BLOCK, length - done)
    append(same ? equal : different, { at: at + done, length: piece })
  }
  return { equal, different, unreadable: theirs.length === 0 }
}

function append(runs: Range[], next: Range): void {
  const last = runs.at(-1)
  if (last === undefined || last.at + last.length !== next.at) runs.push(next)
  else runs[runs.length - 1] = { at: last.at, length: last.length + next.length }
}
