/**
 * The valve layer: limits reads, writes or both to so many bytes and so many requests a second.
 *
 * Invariants:
 *  - Limited requests go on in the order in which they came: nobody is overtaken, so a large one is not starved by
 *    small ones.
 *  - A request that the limits allow goes on at once, without a promise.
 *  - After stopWaiting() nothing is limited any more, and nothing waits.
 */

import type { BlockDevice, RequestFlags } from '../../core/block-device.ts'
import type { Timers } from '../../core/clock.ts'
import { Fault } from '../../core/fault.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'
import { TiB } from '../../core/units.ts'
import { NODE_TIMERS } from '../../replication/node-timers.ts'
import { deviceBelow, integerSetting, sizeSetting, type Driver, type Stage } from '../driver.ts'
import { Layer } from '../../core/layer.ts'
import { TokenBucket } from './token-bucket.ts'

export interface ValveOptions {
  readonly reads: boolean
  readonly writes: boolean
  /** A second; without it bytes are not limited. */
  readonly bytes?: number
  /** Requests a second; without it they are not limited. */
  readonly iops?: number
  /** How long the rate is saved up while it is not used. */
  readonly burstMs: number
  readonly timers: Timers
  readonly nowMs: () => number
}

interface Waiting {
  readonly bytes: number
  readonly pass: () => void
}

export class ValveDevice extends Layer {
  readonly #options: ValveOptions
  readonly #bytes: TokenBucket | undefined
  readonly #iops: TokenBucket | undefined
  #queue: Waiting[] = []
  #cancelTimer: (() => void) | undefined
  #open = false

  constructor(below: BlockDevice, options: ValveOptions) {
    super(below)
    this.#options = options
    const { bytes, iops, burstMs } = options
    const bucket = (rate: number): TokenBucket =>
      new TokenBucket(rate, Math.max(1, (rate * burstMs) / 1000), options.nowMs())
    this.#bytes = bytes === undefined ? undefined : bucket(bytes)
    this.#iops = iops === undefined ? undefined : bucket(iops)
  }

  /** Requests that wait for their turn. */
  get waiting(): number {
    return this.#queue.length
  }

  override read(into: Buffer, at: number): MaybePromise<void> {
    if (!this.#options.reads || this.#passes(into.length)) return this.below.read(into, at)
    return this.#enqueue(into.length, () => this.below.read(into, at))
  }

  override write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    if (!this.#options.writes || this.#passes(from.length)) return this.below.write(from, at, flags)
    return this.#enqueue(from.length, () => this.below.write(from, at, flags))
  }

  // Zeroes and trims carry no data: each is one request of no bytes, whatever its length.

  override zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    if (!this.#options.writes || this.#passes(0)) return this.below.zero(at, length, flags)
    return this.#enqueue(0, () => this.below.zero(at, length, flags))
  }

  override trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    if (!this.#options.writes || this.#passes(0)) return this.below.trim(at, length, flags)
    return this.#enqueue(0, () => this.below.trim(at, length, flags))
  }

  override stopWaiting(): void {
    this.#open = true
    this.#cancelTimer?.()
    this.#cancelTimer = undefined
    const queue = this.#queue
    this.#queue = []
    for (const { pass } of queue) pass()
    super.stopWaiting()
  }

  /** Whether a request may go on now; then it is counted. */
  #passes(bytes: number): boolean {
    if (this.#open) return true
    if (this.#queue.length > 0 || this.#waitMs(bytes) > 0) return false
    this.#take(bytes)
    return true
  }

  #enqueue(bytes: number, work: () => MaybePromise<void>): Promise<void> {
    const turn = new Promise<void>((resolve) => this.#queue.push({ bytes, pass: resolve }))
    this.#waitForFirst()
    return turn.then(work)
  }

  readonly #advance = (): void => {
    this.#cancelTimer = undefined
    for (let first = this.#queue[0]; first !== undefined; first = this.#queue[0]) {
      if (this.#waitMs(first.bytes) > 0) break
      this.#take(first.bytes)
      this.#queue.shift()
      first.pass()
    }
    if (this.#queue.length > 0) this.#waitForFirst()
  }

  #waitForFirst(): void {
    if (this.#cancelTimer !== undefined) return
    const ms = Math.ceil(this.#waitMs(this.#queue[0]?.bytes ?? 0))
    const waitMs = Math.min(Math.max(1, ms), LONGEST_MS)
    this.#cancelTimer = this.#options.timers.after(waitMs, this.#advance)
  }

  #waitMs(bytes: number): number {
    const nowMs = this.#options.nowMs()
    return Math.max(this.#bytes?.waitMs(bytes, nowMs) ?? 0, this.#iops?.waitMs(1, nowMs) ?? 0)
  }

  #take(bytes: number): void {
    this.#bytes?.take(bytes)
    this.#iops?.take(1)
  }
}

/** The longest time that a timer of Node can wait. */
const LONGEST_MS = 2 ** 31 - 1
const USUAL_BURST_MS = 1000

export const valve: Driver = {
  name: 'valve',
  kind: 'layer',
  target: 'what it limits: all, read or write',
  keys: {
    bytes: { meaning: 'bytes a second', values: 'a size such as 50M' },
    iops: { meaning: 'requests a second', values: '1-1000000000' },
    burst: {
      meaning: 'milliseconds of the rate that may be saved up',
      values: `1-3600000, ${USUAL_BURST_MS} unless given`,
    },
  },
  open: (stage, below) => Promise.resolve(new ValveDevice(deviceBelow(below), optionsOf(stage))),
}

function optionsOf(stage: Stage): ValveOptions {
  const { target, settings } = stage
  if (target !== 'all' && target !== 'read' && target !== 'write') {
    throw new Fault('INVALID', `a valve for "${target}"`, {
      remedy: 'name what it limits: valve:all, valve:read or valve:write',
    })
  }
  if (!settings.has('bytes') && !settings.has('iops')) {
    throw new Fault('INVALID', 'a valve without a limit', {
      where: `valve:${target}`,
      remedy: 'give bytes= or iops=, such as bytes=50M',
    })
  }
  const rate = { least: 1, most: 1_000_000_000 }
  return {
    reads: target !== 'write',
    writes: target !== 'read',
    ...(settings.has('bytes')
      ? { bytes: sizeSetting(stage, 'bytes', { least: 1, most: 1 * TiB }, 0) }
      : {}),
    ...(settings.has('iops') ? { iops: integerSetting(stage, 'iops', rate, 0) } : {}),
    burstMs: integerSetting(stage, 'burst', { least: 1, most: 3_600_000 }, USUAL_BURST_MS),
    timers: NODE_TIMERS,
    nowMs: () => performance.now(),
  }
}
