/**
 * Everything that a replica keeps on disks, as the list of what was done to them: journal segments, maps of changed
 * regions, images. A crash after any step of the list leaves the flushed part and, of the rest, what a fate decides.
 *
 * Invariants:
 *  - A step is in the list when its request is made, a flush when it has been answered: what a crash in between leaves is
 *    among the outcomes of the steps before.
 *  - Requests are answered in the order in which they were made, each in a turn of the event loop of its own.
 */

import type { BlockDevice } from '../../../core/block-device.ts'
import { seededRandom } from '../../../core/seeded-random.ts'
import { SECTOR } from '../../../core/units.ts'
import type { SegmentFile, SegmentStore } from '../../../replication/journal/segments.ts'
import { bitmapBytes, type RegionStore } from '../../../replication/regions/region-store.ts'
import { MemoryDevice } from '../../nbd/memory-device.ts'

/** Bytes of disk behind a bit of the map. */
const REGION = 4 * SECTOR

type Place = `segment ${number}` | `regions ${number}` | `image ${number}`

type Step =
  | { readonly kind: 'create'; readonly place: Place; readonly length: number }
  | { readonly kind: 'write'; readonly place: Place; readonly at: number; readonly bytes: Buffer }
  /** Of what was written in the first `until` steps. */
  | { readonly kind: 'flush'; readonly place: Place; readonly until: number }
  | { readonly kind: 'remove'; readonly place: Place }

type Write = Extract<Step, { kind: 'write' }>

/** What becomes of writes that were not flushed. */
export type Fate = 'dropped' | 'kept' | 'torn'

export const FATES: readonly Fate[] = ['dropped', 'kept', 'torn']

interface File {
  bytes: Buffer
  /** Whether a crash leaves the file itself. */
  named: boolean
}

export class RecordedStorage {
  /** What was there when the recording began. */
  readonly #before: ReadonlyMap<Place, Buffer>
  readonly #files: Map<Place, Buffer>
  readonly steps: Step[] = []

  /** @param contents what the images hold */
  constructor(before: ReadonlyMap<Place, Buffer>) {
    this.#before = before
    this.#files = new Map([...before].map(([place, bytes]) => [place, Buffer.from(bytes)]))
  }

  static withImages(contents: readonly Buffer[]): RecordedStorage {
    return new RecordedStorage(
      new Map(contents.map((bytes, disk) => [`image ${disk}` as const, bytes])),
    )
  }

  /** The present bytes of a place. */
  bytesOf(place: Place): Buffer {
    return this.#files.get(place) ?? Buffer.alloc(0)
  }

  /** What a crash leaves after the first `steps` steps; `seed` decides what is torn, and how. */
  afterCrash(steps: number, fate: Fate, seed: number): RecordedStorage {
    const files = new Map<Place, File>()
    for (const [place, bytes] of this.#before)
      files.set(place, { bytes: Buffer.from(bytes), named: true })
    let pending: { readonly index: number; readonly write: Write }[] = []
    for (const [index, step] of this.steps.slice(0, steps).entries()) {
      if (step.kind === 'create')
        files.set(step.place, { bytes: Buffer.alloc(step.length), named: step.length > 0 })
      else if (step.kind === 'remove') {
        files.delete(step.place)
        pending = pending.filter(({ write }) => write.place !== step.place)
      } else if (step.kind === 'write') pending.push({ index, write: step })
      else {
        const file = files.get(step.place)
        if (file !== undefined) file.named = true
        const isFlushed = ({ index, write }: (typeof pending)[number]): boolean =>
          write.place === step.place && index < step.until
        for (const each of pending) if (isFlushed(each)) put(files, each.write, each.write.bytes)
        pending = pending.filter((each) => !isFlushed(each))
      }
    }
    const chance = seededRandom(seed)
    for (const { write } of pending) put(files, write, remnantOf(write, fate, chance))
    for (const [place, { named }] of [...files])
      if (!named && (fate === 'dropped' || (fate === 'torn' && chance() < 0.5))) files.delete(place)
    return new RecordedStorage(new Map([...files].map(([place, { bytes }]) => [place, bytes])))
  }

  openSegments(): SegmentStore {
    const numbers = (): number[] =>
      [...this.#files.keys()]
        .flatMap((place) => (place.startsWith('segment ') ? [Number(place.slice(8))] : []))
        .sort((a, b) => a - b)
    return {
      place: 'recorded journal',
      list: () => Promise.resolve(numbers()),
      create: (number) => {
        const place = `segment ${number}` as const
        this.#step({ kind: 'create', place, length: 0 })
        return Promise.resolve(this.#segment(place))
      },
      read: (number, at, into) =>
        Promise.resolve(this.bytesOf(`segment ${number}`).subarray(at).copy(into)),
      remove: async (number) => {
        await turn()
        this.#step({ kind: 'remove', place: `segment ${number}` })
      },
      close: () => Promise.resolve(),
    }
  }

  openRegions(disk: number, size: number, fresh: boolean): RegionStore {
    const place = `regions ${disk}` as const
    if (fresh || !this.#files.has(place)) {
      const length = bitmapBytes(size, REGION)
      this.#step({ kind: 'create', place, length })
      if (!fresh) this.#step({ kind: 'write', place, at: 0, bytes: Buffer.alloc(length, 0xff) })
      this.#step({ kind: 'flush', place, until: this.steps.length })
    }
    return {
      regionBytes: REGION,
      found: Buffer.from(this.bytesOf(place)),
      save: async (bitmap, sectors) => {
        for (const sector of sectors) {
          const bytes = Buffer.from(bitmap.subarray(sector * SECTOR, (sector + 1) * SECTOR))
          this.#step({ kind: 'write', place, at: sector * SECTOR, bytes })
        }
        const until = this.steps.length
        await turn()
        this.#step({ kind: 'flush', place, until })
      },
      close: () => Promise.resolve(),
    }
  }

  openImage(disk: number): BlockDevice {
    const place = `image ${disk}` as const
    const device = new MemoryDevice(this.bytesOf(place).length)
    this.bytesOf(place).copy(device.bytes)
    const write = device.write.bind(device)
    const zero = device.zero.bind(device)
    const flush = device.flush.bind(device)
    device.write = (from, at, flags) => {
      this.#step({ kind: 'write', place, at, bytes: Buffer.from(from) })
      return turn().then(() => write(from, at, flags))
    }
    device.zero = (at, length, flags) => {
      this.#step({ kind: 'write', place, at, bytes: Buffer.alloc(length) })
      return turn().then(() => zero(at, length, flags))
    }
    device.trim = (at, length, flags) => device.zero(at, length, flags)
    device.flush = async () => {
      const until = this.steps.length
      await turn()
      await flush()
      this.#step({ kind: 'flush', place, until })
    }
    return device
  }

  #segment(place: Place): SegmentFile {
    return {
      append: async (chunks) => {
        const bytes = Buffer.concat(chunks)
        this.#step({ kind: 'write', place, at: this.bytesOf(place).length, bytes })
        await turn()
      },
      sync: async () => {
        const until = this.steps.length
        await turn()
        this.#step({ kind: 'flush', place, until })
      },
      close: () => Promise.resolve(),
    }
  }

  #step(step: Step): void {
    this.steps.push(step)
    if (step.kind === 'create') this.#files.set(step.place, Buffer.alloc(step.length))
    else if (step.kind === 'remove') this.#files.delete(step.place)
    else if (step.kind === 'write')
      this.#files.set(step.place, written(this.bytesOf(step.place), step.at, step.bytes))
  }
}

/** What is under way goes on. */
export function turn(): Promise<void> {
  return new Promise(setImmediate)
}

function put(
  files: Map<Place, File>,
  { place, at }: { place: Place; at: number },
  bytes: Buffer,
): void {
  const file = files.get(place)
  if (file !== undefined) file.bytes = written(file.bytes, at, bytes)
}

function written(before: Buffer, at: number, bytes: Buffer): Buffer {
  if (bytes.length === 0) return before
  const after = Buffer.alloc(Math.max(before.length, at + bytes.length))
  before.copy(after)
  bytes.copy(after, at)
  return after
}

/** Sectors of images and maps are written whole or not at all; of a journal any part may be there. */
function remnantOf(
  { place, bytes }: { place: Place; bytes: Buffer },
  fate: Fate,
  chance: () => number,
): Buffer {
  if (fate === 'dropped') return bytes.subarray(0, 0)
  if (fate === 'kept') return bytes
  if (place.startsWith('segment')) return bytes.subarray(0, Math.floor(chance() * bytes.length))
  return bytes.subarray(0, SECTOR * Math.floor(chance() * (bytes.length / SECTOR + 1)))
}
