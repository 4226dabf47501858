/**
 * The fault layer: makes chosen requests slow, stuck, wrong or half done. For tests only.
 *
 * Invariants:
 *  - Which requests are hit depends on their order and on the settings, never on time or chance: the same requests with
 *    the same seed are hit again.
 *  - A request that is hit with an error fails; one that is hit without is carried out, late.
 *  - A request that is stuck stays so until release(), or until the disk is to be closed: then it fails.
 */

import type { BlockDevice, Extent, RequestFlags } from '../core/block-device.ts'
import type { Timers } from '../core/clock.ts'
import { Fault, type FaultCode } from '../core/fault.ts'
import { then, type MaybePromise } from '../core/maybe-promise.ts'
import { NODE_TIMERS } from '../replication/node-timers.ts'
import {
  booleanSetting,
  choiceSetting,
  deviceBelow,
  fractionSetting,
  integerSetting,
  sizeSetting,
  type Driver,
  type Stage,
} from './driver.ts'
import { Layer } from '../core/layer.ts'

const KINDS = ['read', 'write', 'zero', 'trim', 'flush', 'status'] as const
type Kind = (typeof KINDS)[number]

/** Errors by the names that they have elsewhere, and the fault that stands for each. */
const ERRORS = {
  EIO: 'IO',
  ENOSPC: 'NO_SPACE',
  ENOMEM: 'NO_MEMORY',
  EINVAL: 'INVALID',
  EPERM: 'NOT_PERMITTED',
  ENOTSUP: 'NOT_SUPPORTED',
  ESHUTDOWN: 'SHUTDOWN',
} as const satisfies Readonly<Record<string, FaultCode>>
type ErrorName = keyof typeof ERRORS
const ERROR_NAMES = Object.keys(ERRORS) as ErrorName[]

export interface FaultOptions {
  readonly kinds: ReadonlySet<Kind>
  /** Only requests that touch [at, end); a flush touches everything. */
  readonly at: number
  readonly end: number
  /** The first matching request that may be hit, counted from 1, and how many may be hit at most. */
  readonly first: number
  readonly count: number
  /** How likely a matching request is hit. */
  readonly probability: number
  readonly seed: number
  readonly delayMs: number
  readonly stuck: boolean
  readonly error: ErrorName | undefined
  /** How much of a request that fails is carried out all the same. */
  readonly applied: 'none' | 'half' | 'all'
  readonly timers: Timers
}

export class FaultDevice extends Layer {
  readonly #options: FaultOptions
  readonly #random: () => number
  /** Ends each wait: it goes on, or fails when a fault is given. */
  readonly #delayed = new Set<() => void>()
  readonly #stuck = new Set<(fault?: Fault) => void>()
  #matched = 0
  #hits = 0
  #stopping = false

  constructor(below: BlockDevice, options: FaultOptions) {
    super(below)
    this.#options = options
    this.#random = mulberry32(options.seed)
  }

  /** Requests that were hit. */
  get hits(): number {
    return this.#hits
  }

  /** Requests that are stuck now. */
  get stuck(): number {
    return this.#stuck.size
  }

  /** Lets every request go on that is stuck now. */
  release(): void {
    for (const end of this.#stuck) end()
    this.#stuck.clear()
  }

  override read(into: Buffer, at: number): MaybePromise<void> {
    return this.#serve('read', at, into.length, () => super.read(into, at))
  }

  override write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    return this.#serve('write', at, from.length, (length) =>
      super.write(from.subarray(0, length), at, flags),
    )
  }

  override zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#serve('zero', at, length, (part) => super.zero(at, part, flags))
  }

  override trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.#serve('trim', at, length, (part) => super.trim(at, part, flags))
  }

  override flush(): MaybePromise<void> {
    return this.#serve('flush', 0, Infinity, () => super.flush())
  }

  override status(at: number, length: number): MaybePromise<Extent[]> {
    return this.#serve('status', at, length, () => super.status(at, length))
  }

  override stopWaiting(): void {
    this.#stopping = true
    for (const end of this.#delayed) end()
    const fault = new Fault('SHUTDOWN', 'a stuck request was given up because the disk is closed')
    for (const end of this.#stuck) end(fault)
    this.#stuck.clear()
    super.stopWaiting()
  }

  /** @param work carries out so many bytes of the request */
  #serve<T>(
    kind: Kind,
    at: number,
    length: number,
    work: (length: number) => MaybePromise<T>,
  ): MaybePromise<T> {
    if (!this.#isHit(kind, at, length)) return work(length)
    const { delayMs, stuck, error } = this.#options
    return then(delayMs > 0 ? this.#delay(delayMs) : undefined, () =>
      then(stuck ? this.#stick() : undefined, () =>
        error === undefined ? work(length) : this.#fail(error, kind, at, length, work),
      ),
    )
  }

  #isHit(kind: Kind, at: number, length: number): boolean {
    const { kinds, first, count, probability } = this.#options
    if (!kinds.has(kind) || at >= this.#options.end || at + length <= this.#options.at) return false
    this.#matched += 1
    if (this.#matched < first || this.#hits >= count) return false
    if (probability < 1 && this.#random() >= probability) return false
    this.#hits += 1
    return true
  }

  #fail<T>(
    error: ErrorName,
    kind: Kind,
    at: number,
    length: number,
    work: (length: number) => MaybePromise<T>,
  ): MaybePromise<T> {
    const { applied } = this.#options
    const { min } = this.below.geometry.block
    const part = applied === 'half' ? Math.floor(length / 2 / min) * min : length
    return then(applied === 'none' || part === 0 ? undefined : work(part), () => {
      const where = kind === 'flush' ? 'flush' : `${kind} of ${length} bytes at ${at}`
      throw new Fault(ERRORS[error], `${error}, as the fault layer was told`, { where })
    })
  }

  #delay(ms: number): MaybePromise<void> {
    if (this.#stopping) return undefined
    return new Promise((resolve) => {
      const end = (): void => {
        cancel()
        this.#delayed.delete(end)
        resolve()
      }
      const cancel = this.#options.timers.after(ms, end)
      this.#delayed.add(end)
    })
  }

  #stick(): MaybePromise<void> {
    if (this.#stopping) throw new Fault('SHUTDOWN', 'the disk is being closed')
    return new Promise((resolve, reject) => {
      this.#stuck.add((fault) => (fault === undefined ? resolve() : reject(fault)))
    })
  }
}

/** Numbers in [0, 1) from a seed; enough for choosing, for nothing else. */
function mulberry32(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

export const fault: Driver = {
  name: 'fault',
  kind: 'layer',
  target: `what it hits: all, or some of ${KINDS.join(', ')}, joined by commas`,
  keys: {
    error: {
      meaning: 'the error; without it and without delay and stuck it is EIO',
      values: ERROR_NAMES.join('|'),
    },
    delay: { meaning: 'milliseconds to wait first', values: '1-86400000' },
    stuck: { meaning: 'never answer', values: 'on|off' },
    applied: { meaning: 'what is done of a request that fails', values: 'none|half|all' },
    at: { meaning: 'only requests that touch bytes from here on', values: 'a size' },
    length: { meaning: 'only requests that touch so many bytes from at on', values: 'a size' },
    first: { meaning: 'the first matching request that is hit, from 1', values: 'a number' },
    count: { meaning: 'how many are hit at most', values: 'a number' },
    probability: { meaning: 'how likely a matching request is hit', values: '0-1' },
    seed: { meaning: 'of the choice that probability makes', values: '0-4294967295' },
  },
  open: (stage, below) => Promise.resolve(new FaultDevice(deviceBelow(below), optionsOf(stage))),
}

function optionsOf(stage: Stage): FaultOptions {
  const whole = { least: 0, most: Number.MAX_SAFE_INTEGER }
  const many = { least: 1, most: Number.MAX_SAFE_INTEGER }
  const at = sizeSetting(stage, 'at', whole, 0)
  const delayMs = integerSetting(stage, 'delay', { least: 1, most: 86_400_000 }, 0)
  const stuck = booleanSetting(stage, 'stuck', false)
  const slow = delayMs > 0 || stuck
  const error =
    stage.settings.has('error') || !slow
      ? choiceSetting(stage, 'error', ERROR_NAMES, 'EIO')
      : undefined
  return {
    kinds: kindsOf(stage.target),
    at,
    end: at + sizeSetting(stage, 'length', { ...whole, least: 1 }, Infinity),
    first: integerSetting(stage, 'first', many, 1),
    count: integerSetting(stage, 'count', many, Infinity),
    probability: fractionSetting(stage, 'probability', 1),
    seed: integerSetting(stage, 'seed', { least: 0, most: 2 ** 32 - 1 }, 1),
    delayMs,
    stuck,
    error,
    applied: choiceSetting(stage, 'applied', ['none', 'half', 'all'], 'none'),
    timers: NODE_TIMERS,
  }
}

function kindsOf(target: string): ReadonlySet<Kind> {
  if (target === 'all') return new Set(KINDS)
  return new Set(
    target.split(',').map((word) => {
      const kind = KINDS.find((candidate) => candidate === word)
      if (kind !== undefined) return kind
      throw new Fault('INVALID', `no request is called "${word}"`, {
        where: `fault:${target}`,
        remedy: `name all, or some of ${KINDS.join(', ')}, joined by commas`,
      })
    }),
  )
}
