/**
 * Power failures, all of them that matter: what a driver does with its file is recorded, and for every moment of it files
 * are made as a power failure could leave them. Each must open, and hold every flushed sector.
 *
 * What had not been flushed by the driver at that moment is kept, lost, or torn at sectors, each request for itself: disks
 * and file systems order nothing that a flush does not.
 *
 * A sector's content is the number of the request that wrote it, so that one look tells which version it has.
 */

import assert from 'node:assert/strict'

import type { BlockDevice, Capabilities, Extent, Geometry } from '../../core/block-device.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import type { ImageFile } from '../../drivers/aio/aio-device.ts'
import { below, type Random, seededRandom } from '../../core/seeded-random.ts'

/** What happened to the file, and what the workload knows of its requests, in the order of events. */
type Event =
  | { readonly kind: 'write'; readonly at: number; readonly bytes: Buffer }
  | { readonly kind: 'resize'; readonly size: number }
  | { readonly kind: 'flush' }
  | { readonly kind: 'issued'; readonly sectors: readonly number[]; readonly version: Version }
  | { readonly kind: 'durable'; readonly versions: ReadonlyMap<number, Version> }

type Change = Extract<Event, { kind: 'write' | 'resize' }>

/** `soft` may be undone at any time: a trim that keeps what was there. */
interface Version {
  readonly id: number
  readonly soft: boolean
}

/** A file in memory that remembers what is done to it. Requests overtake each other, as they do with threads. */
export class RecordedFile implements ImageFile {
  geometry: Geometry
  readonly can: Capabilities
  readonly events: Event[] = []
  #bytes: Buffer
  #clock = 1

  /** @param resize whether it is a file, which can grow, or a device */
  constructor(bytes: Buffer, resize = true) {
    this.#bytes = Buffer.from(bytes)
    this.can = {
      ...{ flush: true, fua: true, trim: true, zero: true, fastZero: true },
      ...{ status: true, resize, cache: false },
    }
    this.geometry = {
      ...{ size: bytes.length, readOnly: false, rotational: false },
      block: { min: 1, preferred: 4096, max: 32 * MiB },
    }
  }

  /** The content as it would be if nothing failed. */
  get bytes(): Buffer {
    return this.#bytes
  }

  async read(into: Buffer, at: number): Promise<void> {
    await this.#turns()
    assert.ok(at + into.length <= this.#bytes.length, `a read of ${into.length} at ${at} is inside`)
    this.#bytes.copy(into, 0, at)
  }

  async write(from: Buffer, at: number): Promise<void> {
    assert.ok(
      at + from.length <= this.#bytes.length,
      `a write of ${from.length} at ${at} is inside`,
    )
    await this.#change({ kind: 'write', at, bytes: Buffer.from(from) })
  }

  async zero(at: number, length: number): Promise<void> {
    await this.write(Buffer.alloc(length), at)
  }

  async trim(at: number, length: number): Promise<void> {
    await this.write(Buffer.alloc(length), at)
  }

  async extend(last: Buffer, at: number): Promise<void> {
    assert.ok(at >= this.#bytes.length, 'a file is extended behind its end')
    await this.#change({ kind: 'write', at, bytes: Buffer.from(last) })
  }

  async resize(size: number): Promise<void> {
    await this.#change({ kind: 'resize', size })
  }

  async flush(): Promise<void> {
    await this.#turns()
    this.events.push({ kind: 'flush' })
  }

  status(at: number, length: number): Extent[] {
    return [{ at, length, kind: 'data' }]
  }

  close(): Promise<void> {
    return Promise.resolve()
  }

  /** Waits for one to four turns, always the same ones in a run. */
  async #turns(): Promise<void> {
    this.#clock = (Math.imul(this.#clock, 1_103_515_245) + 12_345) >>> 0
    for (let left = this.#clock >>> 30; left >= 0; left -= 1) await Promise.resolve()
  }

  async #change(change: Change): Promise<void> {
    await this.#turns()
    this.events.push(change)
    this.#bytes = applied(this.#bytes, [change])
    this.geometry = { ...this.geometry, size: this.#bytes.length }
  }
}

export interface PowerFailureOptions {
  readonly seed: number
  /** Requests of the workload. */
  readonly requests: number
  /** Files to make and open for each moment, besides those where everything is kept and everything is lost. */
  readonly samples: number
  /** The image before the workload. */
  readonly image: Buffer
  /** The versions of the sectors before it: what a parent shows, or 0. */
  readonly initial: readonly number[]
  /** Opens the image for writing. */
  readonly open: (file: RecordedFile) => Promise<BlockDevice>
  /**
   * What is wrong with the structures of an image, by somebody who shares no code with its driver. An image that was
   * closed in order has to be better than one that a power failure has left.
   */
  readonly inspect: (image: Buffer, closed: boolean) => string | undefined
}

/** Runs a workload, and opens what power failures make of it. @returns the number of files that were opened */
export async function survivePowerFailures(options: PowerFailureOptions): Promise<number> {
  const { image, initial, seed } = options
  const random = seededRandom(seed)
  const file = new RecordedFile(image)
  await runWorkload(file, options, random)
  const known = new Expectation(initial)
  let opened = 0
  for (const { event, states } of momentsOf(image, file.events, options.samples, random)) {
    if (event.kind === 'issued') known.issue(event.sectors, event.version)
    if (event.kind === 'durable') known.settle(event.versions)
    if (event.kind === 'issued') continue // the file is as it was
    for (const state of states) {
      const moment = `seed ${seed}, event ${file.events.indexOf(event)} of ${file.events.length}`
      await checkAftermath(state, known, options, random, moment)
      opened += 1
    }
  }
  return opened
}

/** Each event of a file that began as `image`, with the files that a power failure right after it can leave. */
export function* momentsOf(
  image: Buffer,
  events: readonly Event[],
  samples: number,
  random: Random,
): Generator<{ readonly event: Event; readonly states: Iterable<Buffer> }> {
  let durable: Buffer = Buffer.from(image)
  let pending: Change[] = []
  for (const event of events) {
    if (event.kind === 'flush') {
      durable = applied(durable, pending)
      pending = []
    }
    if (event.kind === 'write' || event.kind === 'resize') pending.push(event)
    yield { event, states: aftermaths(durable, pending, samples, random) }
  }
}

/** What each sector may hold. */
class Expectation {
  readonly #versions: Version[][]

  constructor(initial: readonly number[]) {
    this.#versions = initial.map((id) => [{ id, soft: false }])
  }

  get sectors(): number {
    return this.#versions.length
  }

  issue(sectors: readonly number[], version: Version): void {
    for (const sector of sectors) this.#versions[sector]?.push(version)
  }

  /** These versions, or later ones, are what there is from now on. */
  settle(versions: ReadonlyMap<number, Version>): void {
    for (const [sector, version] of versions) {
      const list = this.#versions[sector] ?? []
      let floor = list.indexOf(version)
      while (floor > 0 && list[floor]?.soft === true) floor -= 1
      list.splice(0, Math.max(floor, 0))
    }
  }

  objection(sector: number, content: Buffer): string | undefined {
    const id = content.readUInt32LE(0)
    for (let at = 0; at < SECTOR; at += 4)
      if (content.readUInt32LE(at) !== id) return `sector ${sector} is torn`
    const allowed = (this.#versions[sector] ?? []).map((version) => version.id)
    if (allowed.includes(id)) return undefined
    return `sector ${sector} has version ${id}, not one of ${allowed.join(', ')}`
  }
}

async function checkAftermath(
  image: Buffer,
  known: Expectation,
  options: PowerFailureOptions,
  random: Random,
  moment: string,
): Promise<void> {
  const wrong = options.inspect(image, false)
  assert.equal(wrong, undefined, `${moment}: ${wrong ?? ''}`)
  const file = new RecordedFile(image)
  const device = await options.open(file)
  const content = await readAll(device)
  for (let sector = 0; sector < known.sectors; sector += 1) {
    const found = content.subarray(sector * SECTOR, (sector + 1) * SECTOR)
    const objection = known.objection(sector, found)
    assert.equal(objection, undefined, `${moment}: ${objection ?? ''}`)
  }
  // Life goes on: a write elsewhere must bring up nothing that the failure left behind.
  const sector = below(random, known.sectors)
  const marker = Buffer.alloc(SECTOR, 0xee)
  await device.write(marker, sector * SECTOR, 0)
  marker.copy(content, sector * SECTOR)
  assert.ok((await readAll(device)).equals(content), `${moment}: a write changed other sectors`)
  await device.close()
  const after = options.inspect(file.bytes, true)
  assert.equal(after, undefined, `${moment}, after a clean close: ${after ?? ''}`)
  const again = await options.open(new RecordedFile(file.bytes))
  assert.ok((await readAll(again)).equals(content), `${moment}: it differs after a clean close`)
  await again.close()
}

async function readAll(device: BlockDevice): Promise<Buffer> {
  const all = Buffer.alloc(device.geometry.size)
  await device.read(all, 0)
  return all
}

/** Batches of requests side by side, with flushes behind and among them. */
async function runWorkload(
  file: RecordedFile,
  { requests, initial, open }: PowerFailureOptions,
  random: Random,
): Promise<void> {
  const device = await open(file)
  const latest = initial.map((id): Version => ({ id, soft: false }))
  const busy = new Set<number>()
  let nextId = 1000
  let running: Promise<void>[] = []
  const flush = async (): Promise<void> => {
    const covered = new Map(
      latest.map((version, sector) => [sector, version] as const).filter(([s]) => !busy.has(s)),
    )
    await device.flush()
    file.events.push({ kind: 'durable', versions: covered })
  }
  const change = async (): Promise<void> => {
    const first = below(random, initial.length)
    const count = 1 + below(random, Math.min(initial.length - first, random() < 0.2 ? 40 : 6))
    const sectors = Array.from({ length: count }, (_, index) => first + index)
    if (sectors.some((sector) => busy.has(sector))) return
    const kind = random() < 0.7 ? 'write' : random() < 0.6 ? 'zero' : 'trim'
    const version = { id: kind === 'write' ? nextId++ : 0, soft: kind === 'trim' }
    for (const sector of sectors) busy.add(sector)
    file.events.push({ kind: 'issued', sectors, version })
    await perform(device, kind, first * SECTOR, count * SECTOR, version.id)
    for (const sector of sectors) {
      latest[sector] = version
      busy.delete(sector)
    }
  }
  for (let request = 0; request < requests; request += 1) {
    running.push(random() < 0.15 ? flush() : change())
    if (random() < 0.4) {
      await Promise.all(running)
      running = []
    }
  }
  await Promise.all(running)
  await flush()
  await device.close()
}

async function perform(
  device: BlockDevice,
  kind: 'write' | 'zero' | 'trim',
  at: number,
  length: number,
  id: number,
): Promise<void> {
  if (kind === 'zero') return device.zero(at, length, 0)
  if (kind === 'trim') return device.trim(at, length, 0)
  const bytes = Buffer.alloc(length)
  for (let word = 0; word < length; word += 4) bytes.writeUInt32LE(id, word)
  return device.write(bytes, at, 0)
}

/** What may be on the disk when the power fails now. */
function* aftermaths(
  durable: Buffer,
  pending: readonly Change[],
  samples: number,
  random: Random,
): Generator<Buffer> {
  yield durable
  if (pending.length === 0) return
  yield applied(durable, pending)
  for (let sample = 0; sample < samples; sample += 1) {
    const kept = random()
    const chosen = pending.flatMap((change) => {
      if (random() < 0.2) return sectorsOf(change).filter(() => random() < 0.5)
      return random() < kept ? [change] : []
    })
    yield applied(durable, chosen)
  }
}

/** A write as one write for each sector; a size changes or does not. */
function sectorsOf(change: Change): readonly Change[] {
  if (change.kind === 'resize') return [change]
  const { at, bytes } = change
  const parts: Change[] = []
  for (let done = 0; done < bytes.length;) {
    const end = Math.min((Math.floor((at + done) / SECTOR) + 1) * SECTOR - at, bytes.length)
    parts.push({ kind: 'write', at: at + done, bytes: bytes.subarray(done, end) })
    done = end
  }
  return parts
}

/** The file after these changes. What it grows by is zero, also where it was longer once. */
function applied(image: Buffer, changes: readonly Change[]): Buffer {
  const ends = changes.map((change) =>
    change.kind === 'resize' ? change.size : change.at + change.bytes.length,
  )
  const bytes = Buffer.alloc(Math.max(image.length, ...ends))
  image.copy(bytes)
  let { length } = image
  for (const change of changes) {
    if (change.kind === 'resize') {
      if (change.size < length) bytes.fill(0, change.size, length)
      length = change.size
    } else {
      change.bytes.copy(bytes, change.at)
      length = Math.max(length, change.at + change.bytes.length)
    }
  }
  return bytes.subarray(0, length)
}
