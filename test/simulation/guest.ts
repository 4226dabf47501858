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
import type { Watchers } from './standing-rules.ts'
import { contentOf, type SectorBuffer, type SectorBuffers } from './sectors.ts'

const LONGEST = 14
/** What a buffer is filled with when its request has ended: whoever still uses it spreads that. */
const SCRIBBLE = 0x5c5c5c5c
/** How much longer a guest thinks when it has made the requests that it hurries with. */
const CALM = 25

export interface GuestOptions {
  readonly scheduler: Scheduler
  readonly random: Random
  readonly life: Life
  /** By slot; one that is undefined cannot be used now. */
  readonly disks: readonly (BlockDevice | undefined)[]
  readonly registers: readonly Registers[]
  readonly nextTag: () => number
  /** Whether a request may fail so now. */
  readonly mayFail: (code: FaultCode, slot: number) => boolean
  readonly slowestMs: number
  /** Requests that it makes in a hurry. */
  readonly burst: number
  readonly buffers: SectorBuffers
  /** Told of each write that completes. */
  readonly written: (slot: number, tag: number) => void
  readonly watchers: Watchers
}

type Kind = 'read' | 'write' | 'zero' | 'trim' | 'flush'

interface Request {
  readonly slot: number
  readonly kind: Kind
  readonly span: Span
  readonly tag: number
  readonly number: number
}

/** What became of a request. */
type Outcome = { readonly ok: true } | { readonly ok: false; readonly code: FaultCode }

/** The span of a flush. */
const NOWHERE: Span = { first: 0, count: 0 }

export class Guest {
  /** Requests that were not answered yet. */
  readonly outstanding = new Set<Request>()
  /** Writes that were acknowledged, and those that were refused as not permitted. */
  acknowledged = 0
  notPermitted = 0
  readonly #options: GuestOptions
  #running = false
  #count = 0

  constructor(options: GuestOptions) {
    this.#options = options
  }

  /** Whether it has made a request. */
  get hasAsked(): boolean {
    return this.#count > 0
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
    for (const [slot, disk] of disks.entries())
      if (disk !== undefined)
        this.#read(slot, disk, registers[slot]!, { first: 0, count: registers[slot]!.count })
  }

  flushAll(): void {
    for (const [slot, disk] of this.#options.disks.entries())
      if (disk !== undefined)
        this.#perform(
          this.#request(slot, 'flush', NOWHERE),
          () => disk.flush(),
          () => undefined,
        )
  }

  /** Whether a request on a disk is under way. */
  uses(slot: number): boolean {
    return [...this.outstanding].some((request) => request.slot === slot)
  }

  #think(): void {
    const { scheduler, random, life, slowestMs, burst } = this.#options
    const longestMs = this.#count < burst ? slowestMs : CALM * slowestMs
    scheduler.after(random.delay(0, longestMs), life, 'guest', () => {
      if (this.#running) this.#issue()
    })
  }

  #issue(): void {
    const { random, disks, registers } = this.#options
    const slot = random.whole(0, disks.length - 1)
    const disk = disks[slot]
    if (disk === undefined) return this.#think()
    const register = registers[slot]!
    const span = this.#span(register.count)
    const dice = random.next()
    if (dice < 0.5) this.#write(slot, disk, register, span)
    else if (dice < 0.8) this.#read(slot, disk, register, span)
    else if (dice < 0.94) this.#zero(slot, disk, register, span, dice < 0.88)
    else
      this.#perform(
        this.#request(slot, 'flush', NOWHERE),
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

  #write(slot: number, disk: BlockDevice, registers: Registers, span: Span): void {
    const tag = this.#options.nextTag()
    const ticket = registers.beginWrite(span, tag)
    const buffer = this.#options.buffers.take(tag, span.count)
    this.#perform(
      this.#request(slot, 'write', span, tag),
      () => disk.write(buffer.bytes, span.first * SECTOR, 0),
      (outcome) => {
        this.#giveBack(buffer)
        this.#changed(outcome)
        registers.endWrite(ticket, resultOf(outcome))
        if (outcome.ok) this.#options.written(slot, tag)
        this.#think()
      },
    )
  }

  #zero(slot: number, disk: BlockDevice, registers: Registers, span: Span, trim: boolean): void {
    const ticket = registers.beginWrite(span, 0)
    const [at, length] = [span.first * SECTOR, span.count * SECTOR]
    this.#perform(
      this.#request(slot, trim ? 'trim' : 'zero', span),
      () => (trim ? disk.trim(at, length, 0) : disk.zero(at, length, 0)),
      (outcome) => {
        this.#changed(outcome)
        registers.endWrite(ticket, resultOf(outcome))
        this.#think()
      },
    )
  }

  #changed(outcome: Outcome): void {
    if (outcome.ok) {
      this.acknowledged += 1
      this.#options.watchers.acknowledged(this.#options.life)
    }
    if (!outcome.ok && outcome.code === 'NOT_PERMITTED') this.notPermitted += 1
  }

  #read(slot: number, disk: BlockDevice, registers: Registers, span: Span): void {
    const ticket = registers.beginRead(span)
    const buffer = this.#options.buffers.take(-2, span.count)
    const request = this.#request(slot, 'read', span)
    this.#perform(
      request,
      () => disk.read(buffer.bytes, span.first * SECTOR),
      (outcome) => {
        if (outcome.ok) {
          const objection = registers.endRead(ticket, contentOf(buffer.bytes))
          if (objection !== undefined) this.#fail(request, objection)
        } else registers.abandonRead(ticket)
        this.#giveBack(buffer)
        this.#think()
      },
    )
  }

  #giveBack(buffer: SectorBuffer): void {
    buffer.words.fill(SCRIBBLE)
    this.#options.buffers.give(buffer)
  }

  #request(slot: number, kind: Kind, span: Span, tag = 0): Request {
    this.#count += 1
    return { slot, kind, span, tag, number: this.#count }
  }

  #perform(
    request: Request,
    start: () => MaybePromise<void>,
    ended: (outcome: Outcome) => void,
  ): void {
    this.outstanding.add(request)
    this.#note(request, 'begins')
    const { watchers, life } = this.#options
    const mustRefuse = watchers.mustRefuse(life, request.slot)
    let answered = false
    const end = (outcome: Outcome): void => {
      if (answered) this.#fail(request, 'is answered twice')
      answered = true
      this.outstanding.delete(request)
      if (outcome.ok && mustRefuse && watchers.mustRefuse(life, request.slot))
        this.#fail(request, '17: is answered by a copy that serves nobody')
      this.#note(request, outcome.ok ? 'done' : outcome.code)
      ended(outcome)
    }
    const failed = (error: unknown): void => end(this.#judge(request, error))
    let result: MaybePromise<void>
    try {
      result = start()
    } catch (error) {
      return failed(error)
    }
    if (isPromise(result)) result.then(() => end({ ok: true }), failed)
    else end({ ok: true })
  }

  #judge(request: Request, error: unknown): Outcome {
    if (!(error instanceof Fault)) {
      this.#options.scheduler.fail(error)
      return { ok: false, code: 'IO' }
    }
    if (!this.#options.mayFail(error.code, request.slot))
      this.#fail(request, `failed: ${error.message}`)
    return { ok: false, code: error.code }
  }

  #note(request: Request, what: string): void {
    const { scheduler, life } = this.#options
    if (scheduler.trace !== undefined)
      scheduler.note(`${life.name} guest: ${describe(request)}: ${what}`)
  }

  #fail(request: Request, what: string): void {
    const { scheduler, life } = this.#options
    scheduler.fail(new Error(`${life.name}'s guest: ${describe(request)}: ${what}`))
  }
}

export function describe({ slot, kind, span, tag, number }: Request): string {
  const what = kind === 'write' ? `write ${tag} to` : kind
  return `${what} ${span.first}+${span.count} of disk ${slot} (request ${number})`
}

function resultOf(outcome: Outcome): 'done' | 'failed' | 'refused' {
  if (outcome.ok) return 'done'
  return outcome.code === 'NOT_SUPPORTED' ? 'refused' : 'failed'
}
