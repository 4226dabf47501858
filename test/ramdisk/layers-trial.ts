/** A disk of a secondary and a model of what it should be, through one random history after the other. */

import fc from 'fast-check'
import { NO_HOLE } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import { DiskLayers } from '../../ramdisk/disk-layers.ts'
import { PageMemory } from '../../ramdisk/page-memory.ts'
import { ManualTimers, runUntil, settle, tagged, tagsOf, UnrulyImage } from './unruly-image.ts'
import { UnrulyRecords } from './unruly-records.ts'

/** Three pages and a tail of a sector and a part. */
const SIZE = 25 * SECTOR + 100
const SECTORS = 26

type Tags = ReadonlySet<number>[]

const tagsFrom = (bytes: Buffer): Tags => tagsOf(bytes).map((tag) => new Set([tag]))

/** A read, or a flush taken as a read of what is durable: for each sector what it may find. */
interface Watcher {
  readonly first: number
  readonly allowed: Set<number>[]
}

/**
 * What a disk of a secondary should be. A sector has several possible contents while a write to it is under way,
 * and after one that failed; a read may return what was possible at any moment between its begin and its end.
 */
class Model {
  primary: Tags
  committed: Tags
  view: Tags
  active = false
  /** Contents that writes under way may bring at any moment. */
  readonly coming = new Map<number, number>()
  readonly watchers = new Set<Watcher>()

  constructor(image: Buffer) {
    this.primary = tagsFrom(image)
    this.committed = tagsFrom(image)
    this.view = tagsFrom(image)
  }

  setView(sector: number, tags: ReadonlySet<number>): void {
    this.view[sector] = tags
    for (const watcher of this.watchers)
      for (const tag of tags) watcher.allowed[sector - watcher.first]?.add(tag)
  }

  announce(sector: number, tag: number): void {
    this.coming.set(sector, tag)
    for (const watcher of this.watchers) watcher.allowed[sector - watcher.first]?.add(tag)
  }

  watch(first: number, count: number): Watcher {
    const allowed = this.view.slice(first, first + count).map((tags) => new Set(tags))
    for (const [sector, tag] of this.coming) allowed[sector - first]?.add(tag)
    const watcher = { first, allowed }
    this.watchers.add(watcher)
    return watcher
  }
}

const range = fc.record({ first: fc.nat(SECTORS - 1), count: fc.integer({ min: 1, max: 12 }) })
const change = fc.record({ kind: fc.constantFrom('write', 'zero', 'keep', 'trim'), range })
export const step = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ op: fc.constant('receive' as const), change, spill: fc.boolean() }),
  },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('local' as const), change }) },
  { weight: 5, arbitrary: fc.record({ op: fc.constant('read' as const), range }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('received' as const), range }) },
  { weight: 8, arbitrary: fc.record({ op: fc.constant('finish' as const), which: fc.nat(20) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('timer' as const), which: fc.nat(20) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('cut' as const) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('seal' as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('discard' as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('lose' as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('activate' as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('flush' as const) }) },
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never
type Change = Extract<Step, { op: 'local' }>['change']

export class Trial {
  readonly image: UnrulyImage
  readonly records: UnrulyRecords
  readonly timers = new ManualTimers()
  readonly memory = new PageMemory(8 * MiB)
  readonly layers: DiskLayers
  readonly model: Model
  readonly faults: Fault[] = []
  readonly #checkpoints: Tags[] = []
  /** What the disk was at each marker that is not committed. */
  readonly #cuts: Tags[] = []
  readonly #flushed: number[] = []
  readonly #running = new Set<Promise<void>>()
  /** The first thing that was not as it should be. */
  #failure: Error | undefined
  #tag = 1000
  #flushing = false
  /** Sectors that the active guest wrote and whose flush it was told has failed. */
  readonly #given = new Set<number>()
  readonly #guest = new Set<number>()

  constructor(seed: number) {
    this.image = new UnrulyImage(SIZE, seed)
    this.records = new UnrulyRecords(seed + 1)
    for (let sector = 0; sector < SECTORS; sector += 1)
      tagged(sector + 1, SECTOR).copy(this.image.content, sector * SECTOR)
    this.image.content.copy(this.image.durable)
    this.model = new Model(this.image.content)
    this.layers = new DiskLayers({
      image: this.image,
      memory: this.memory,
      timers: this.timers,
      onFlushed: (checkpoint) => this.#watched(() => this.#checkFlushed(checkpoint)),
      onError: (fault) => this.faults.push(fault),
    })
  }

  async perform(step: Step): Promise<void> {
    if (step.op === 'receive') this.#receive(step.change, step.spill)
    else if (step.op === 'local') this.#local(step.change)
    else if (step.op === 'read') this.#read(step.range.first, step.range.count)
    else if (step.op === 'received') this.#received(step.range.first, step.range.count)
    else if (step.op === 'finish') {
      this.image.finishOne(step.which)
      this.records.finishOne(step.which)
    } else if (step.op === 'timer') this.timers.fireOne(step.which)
    else if (step.op === 'flush') this.#flush()
    else if (step.op === 'activate') this.#activate()
    else if (!this.model.active) {
      if (step.op === 'cut') this.#cut()
      else if (step.op === 'seal') this.#seal()
      else this.#forget(step.op === 'lose')
    }
    await settle()
    this.#check()
  }

  /** The image recovers: all that was begun ends, and the image becomes what it should be. */
  async finish(): Promise<void> {
    this.image.unruly = false
    this.records.calm()
    const all = async () => {
      await Promise.allSettled([...this.#running])
      await this.layers.idle()
    }
    await runUntil(all(), this.image, this.timers)
    this.#check()
    const wanted = this.model.active ? this.model.view : this.model.committed
    tagsOf(this.image.content).forEach((tag, sector) => {
      if (!wanted[sector]?.has(tag)) throw new Error(`the image has ${tag} in sector ${sector}`)
    })
    const whole = Buffer.alloc(SIZE)
    const read = this.layers.read(whole, 0)
    if (isPromise(read)) await runUntil(read, this.image, this.timers)
    tagsOf(whole).forEach((tag, sector) => {
      if (!this.model.view[sector]?.has(tag)) throw new Error(`${tag} is read in ${sector}`)
    })
    const numbers = this.#checkpoints.map((_, index) => index + 1)
    if (String(this.#flushed) !== String(numbers))
      throw new Error(`flushed: ${String(this.#flushed)}`)
    await this.layers.close()
    this.#check()
    if (this.records.pinned !== 0) throw new Error('records are still pinned')
    if (this.memory.bytesInUse !== 0) throw new Error('memory is still in use')
  }

  #check(): void {
    if (this.#failure !== undefined) throw this.#failure
  }

  #fail(error: unknown): void {
    this.#failure ??= error instanceof Error ? error : new Error(String(error))
  }

  #watched(check: () => void): void {
    try {
      check()
    } catch (error) {
      this.#fail(error)
    }
  }

  #sectorsOf({ range: { first, count } }: Change) {
    const end = Math.min(first + count, SECTORS)
    const sectors = Array.from({ length: end - first }, (_, index) => first + index)
    const at = first * SECTOR
    return { sectors, at, length: Math.min(end * SECTOR, SIZE) - at }
  }

  #receive(change: Change, spill: boolean): void {
    if (this.model.active) return
    const { sectors, at, length } = this.#sectorsOf(change)
    const tag = change.kind === 'write' ? (this.#tag += 1) : 0
    const punch = change.kind !== 'keep'
    if (spill || this.layers.isSpilling) {
      if (change.kind === 'write')
        this.layers.spillWrite(
          ...([at, length, this.records.add(at, tagged(tag, length)), this.records] as const),
        )
      else this.layers.spillZero(at, length, punch, this.records)
    } else if (change.kind === 'write') this.layers.receiveWrite(tagged(tag, length), at)
    else this.layers.receiveZero(at, length, punch)
    for (const sector of sectors) this.model.primary[sector] = new Set([tag])
  }

  #local(change: Change): void {
    const { sectors, at, length } = this.#sectorsOf(change)
    // What two overlapping writes under way at a time leave is not defined.
    if (sectors.some((sector) => this.model.coming.has(sector))) return
    const tag = change.kind === 'write' ? (this.#tag += 1) : 0
    if (this.model.active)
      for (const sector of sectors) {
        this.model.announce(sector, tag)
        this.#guest.add(sector)
      }
    const call = () =>
      change.kind === 'write'
        ? this.layers.localWrite(tagged(tag, length), at)
        : change.kind === 'trim'
          ? this.layers.localTrim(at, length)
          : this.layers.localZero(at, length, change.kind === 'keep' ? NO_HOLE : 0)
    this.#run(call, (failed) => {
      for (const sector of sectors) {
        this.model.coming.delete(sector)
        const before = failed ? (this.model.view[sector] ?? []) : []
        this.model.setView(sector, new Set([...before, tag]))
        if (!failed) this.#given.delete(sector)
      }
    })
  }

  #read(first: number, count: number): void {
    const at = first * SECTOR
    const into = Buffer.alloc(Math.min(count * SECTOR, SIZE - at), 0xdd)
    const watcher = this.model.watch(first, count)
    this.#run(
      () => this.layers.read(into, at),
      (failed) => {
        this.model.watchers.delete(watcher)
        if (!failed) this.#compare('read', tagsOf(into), watcher)
      },
    )
  }

  /** Exactly what was received by now, however long the image takes to be read. */
  #received(first: number, count: number): void {
    if (this.model.active) return
    const at = first * SECTOR
    const into = Buffer.alloc(Math.min(count * SECTOR, SIZE - at), 0xdd)
    const allowed = this.model.primary.slice(first, first + count)
    this.#run(
      () => this.layers.readReceived(into, at),
      (failed) => {
        // Whoever asked is gone when this side becomes active.
        if (!failed && !this.model.active)
          this.#compare('received', tagsOf(into), {
            first,
            allowed: allowed.map((t) => new Set(t)),
          })
      },
    )
  }

  #flush(): void {
    if (this.#flushing) return
    this.#flushing = true
    const { active } = this.model
    const given = new Set(this.#given)
    const watcher = this.model.watch(0, SECTORS)
    this.#run(
      () => this.layers.flush(),
      (failed) => {
        this.#flushing = false
        this.model.watchers.delete(watcher)
        if (!active) return
        if (failed) for (const sector of this.#guest) this.#given.add(sector)
        else {
          const tags = tagsOf(this.image.durable)
          for (const sector of [...given, ...this.#given])
            watcher.allowed[sector]?.add(tags[sector] ?? -1)
          this.#compare('durable', tags, watcher)
        }
      },
    )
  }

  #cut(): void {
    this.layers.cut()
    this.records.cut()
    this.#cuts.push([...this.model.primary])
  }

  /** Forgets what was received: since the last marker, or since the last commit. */
  #forget(all: boolean): void {
    if (all) {
      this.layers.discardCut()
      this.#cuts.length = 0
      this.records.discardCut()
    }
    this.layers.discardPending()
    this.records.discardPending()
    this.model.primary = [...(this.#cuts.at(-1) ?? this.model.committed)]
  }

  #seal(): void {
    if (this.#cuts.length === 0) this.#cut()
    const cut = this.#cuts.shift()!
    this.#checkpoints.push(cut)
    this.layers.seal(this.#checkpoints.length)
    this.records.seal(this.#checkpoints.length)
    this.model.committed = [...cut]
    this.model.committed.forEach((tags, sector) => this.model.setView(sector, tags))
  }

  #activate(): void {
    if (!this.model.active) this.#forget(true)
    this.layers.activate()
    this.model.active = true
  }

  /** Before failover nobody but the flusher writes: what is durable now is exactly the checkpoint. */
  #checkFlushed(checkpoint: number): void {
    this.#flushed.push(checkpoint)
    this.records.flushed(checkpoint)
    if (this.model.active) return
    const wanted = this.#checkpoints[checkpoint - 1]
    tagsOf(this.image.durable).forEach((tag, sector) => {
      if (!wanted?.[sector]?.has(tag))
        throw new Error(`checkpoint ${checkpoint}: ${tag} is durable in sector ${sector}`)
    })
  }

  #compare(what: string, tags: readonly number[], { first, allowed }: Watcher): void {
    tags.forEach((tag, index) => {
      if (allowed[index]?.has(tag) === true) return
      const wanted = [...(allowed[index] ?? [])].join(' or ')
      throw new Error(`${what} ${tag} in sector ${first + index} instead of ${wanted}`)
    })
  }

  #run(call: () => MaybePromise<void>, ended: (failed: boolean) => void): void {
    const end = (failed: boolean) => this.#watched(() => ended(failed))
    try {
      const result = call()
      if (!isPromise(result)) return end(false)
      const running = result.then(
        () => end(false),
        (error: unknown) => {
          if (!(error instanceof Fault)) this.#fail(error)
          end(true)
        },
      )
      this.#running.add(running)
      void running.then(() => this.#running.delete(running))
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      end(true)
    }
  }
}
