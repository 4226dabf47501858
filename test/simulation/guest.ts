/**
 * A guest: a few requests at a time on random, often overlapping ranges, each answer judged.
 * No two of its writes have the same tag, so that every sector tells which write it comes from.
 */

import type { BlockDevice } from '../../core/block-device.ts'
import { Fault, type FaultCode } from '../../core/fault.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { SECTOR } from '../../core/units.ts'
import type { Random } from './random.ts'
import type { Registers, Span } from './registers.ts'
import type { Life, Scheduler } from './scheduler.ts'
import { contentOf, sectorsOf } from './sectors.ts'

const LONGEST = 14
/** What a buffer is filled with when its request has ended: whoever still uses it spreads that. */
const SCRIBBLE = 0x5c

export interface GuestOptions {
  readonly scheduler: Scheduler
  readonly random: Random
  readonly life: Life
  readonly disks: readonly BlockDevice[]
  readonly registers: readonly Registers[]
  readonly nextTag: () => number
  /** Whether a request may fail so now. */
  readonly mayFail: (code: FaultCode) => boolean
  readonly slowestMs: number
}

/** What became of a request. */
type Outcome = { readonly ok: true } | { readonly ok: false; readonly code: FaultCode }

export class Guest {
  /** Requests that were not answered yet. */
  readonly outstanding = new Set<string>()
  /** Writes that were acknowledged, and those that were refused as not permitted. */
  acknowledged = 0
  notPermitted = 0
  readonly #options: GuestOptions
  #running = false
  #count = 0

  constructor(options: GuestOptions) {
    this.#options = options
  }

  /** Keeps up to `depth` requests under way. */
  start(depth: number): void {
    this.#running = true
    for (let slot = 0; slot < depth; slot += 1) this.#think()
  }

  stop(): void {
    this.#running = false
  }

  /** Reads every disk whole, once. */
  readAll(): void {
    const { disks, registers } = this.#options
    for (const [index, disk] of disks.entries())
      this.#read(disk, registers[index]!, { first: 0, count: registers[index]!.count })
  }

  flushAll(): void {
    for (const disk of this.#options.disks)
      this.#perform(
        'flush',
        () => disk.flush(),
        () => undefined,
      )
  }

  #think(): void {
    const { scheduler, random, life, slowestMs } = this.#options
    scheduler.after(random.delay(0, slowestMs), life, 'guest', () => {
      if (this.#running) this.#issue()
    })
  }

  #issue(): void {
    const { random, disks, registers } = this.#options
    const index = random.whole(0, disks.length - 1)
    const disk = disks[index]!
    const register = registers[index]!
    const span = this.#span(register.count)
    const dice = random.next()
    if (dice < 0.5) this.#write(disk, register, span)
    else if (dice < 0.8) this.#read(disk, register, span)
    else if (dice < 0.94) this.#zero(disk, register, span, dice < 0.88)
    else
      this.#perform(
        'flush',
        () => disk.flush(),
        () => this.#think(),
      )
  }

  #span(sectors: number): Span {
    const { random } = this.#options
    // Half of the requests meet in one place.
    const first = random.chance(0.5)
      ? random.whole(0, sectors - 1)
      : random.whole(0, Math.min(12, sectors - 1))
    return { first, count: Math.min(sectors - first, random.whole(1, LONGEST)) }
  }

  #write(disk: BlockDevice, registers: Registers, span: Span): void {
    const tag = this.#options.nextTag()
    const ticket = registers.beginWrite(span, tag)
    const buffer = sectorsOf(tag, span.count)
    this.#perform(
      `write ${tag} to ${span.first}+${span.count}`,
      () => disk.write(buffer, span.first * SECTOR, 0),
      (outcome) => {
        buffer.fill(SCRIBBLE)
        this.#changed(outcome)
        registers.endWrite(ticket, resultOf(outcome))
        this.#think()
      },
    )
  }

  #zero(disk: BlockDevice, registers: Registers, span: Span, trim: boolean): void {
    const ticket = registers.beginWrite(span, 0)
    const [at, length] = [span.first * SECTOR, span.count * SECTOR]
    this.#perform(
      `${trim ? 'trim' : 'zero'} ${span.first}+${span.count}`,
      () => (trim ? disk.trim(at, length, 0) : disk.zero(at, length, 0)),
      (outcome) => {
        this.#changed(outcome)
        registers.endWrite(ticket, resultOf(outcome))
        this.#think()
      },
    )
  }

  #changed(outcome: Outcome): void {
    if (outcome.ok) this.acknowledged += 1
    else if (outcome.code === 'NOT_PERMITTED') this.notPermitted += 1
  }

  #read(disk: BlockDevice, registers: Registers, span: Span): void {
    const ticket = registers.beginRead(span)
    const buffer = sectorsOf(-2, span.count)
    const what = `read ${span.first}+${span.count}`
    this.#perform(
      what,
      () => disk.read(buffer, span.first * SECTOR),
      (outcome) => {
        if (outcome.ok) {
          const objection = registers.endRead(ticket, contentOf(buffer))
          if (objection !== undefined) this.#fail(`${what}: ${objection}`)
        } else registers.abandonRead(ticket)
        buffer.fill(SCRIBBLE)
        this.#think()
      },
    )
  }

  #perform(what: string, start: () => MaybePromise<void>, ended: (outcome: Outcome) => void): void {
    const { scheduler, life } = this.#options
    this.#count += 1
    const name = `${what} (request ${this.#count})`
    this.outstanding.add(name)
    scheduler.note(`${life.name} guest: ${name}`)
    let answered = false
    const end = (outcome: Outcome): void => {
      if (answered) this.#fail(`${what} was answered twice`)
      answered = true
      this.outstanding.delete(name)
      scheduler.note(`${life.name} guest: ${name}: ${outcome.ok ? 'done' : outcome.code}`)
      ended(outcome)
    }
    const failed = (error: unknown): void => end(this.#judge(what, error))
    let result: MaybePromise<void>
    try {
      result = start()
    } catch (error) {
      return failed(error)
    }
    if (isPromise(result)) result.then(() => end({ ok: true }), failed)
    else end({ ok: true })
  }

  #judge(what: string, error: unknown): Outcome {
    if (!(error instanceof Fault)) {
      this.#options.scheduler.fail(error)
      return { ok: false, code: 'IO' }
    }
    if (!this.#options.mayFail(error.code)) this.#fail(`${what} failed: ${error.message}`)
    return { ok: false, code: error.code }
  }

  #fail(what: string): void {
    this.#options.scheduler.fail(new Error(`${this.#options.life.name}'s guest: ${what}`))
  }
}

function resultOf(outcome: Outcome): 'done' | 'failed' | 'refused' {
  if (outcome.ok) return 'done'
  return outcome.code === 'NOT_SUPPORTED' ? 'refused' : 'failed'
}
