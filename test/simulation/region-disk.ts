/** Where a simulated replica keeps the map of a disk's changed regions. A sector that was not flushed when it crashed may be either. */

import { Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
import { bitmapBytes, type RegionStore } from '../../replication/regions/region-store.ts'
import type { JournalConduct } from './segments.ts'
import type { Random } from './random.ts'
import type { Life, Scheduler } from './scheduler.ts'

/** Bytes of disk behind one bit: a disk of a simulation has several. */
const REGION = 8 * SECTOR

interface DiskMap {
  /** Bytes of the disk. */
  readonly size: number
  readonly bytes: Buffer
  readonly cached: Map<number, Buffer>
}

/** The map of a disk that has grown: what it gained is marked, durably. */
function grown(map: DiskMap, size: number): DiskMap {
  if (map.size === size) return map
  const bytes = Buffer.alloc(bitmapBytes(size, REGION))
  map.bytes.copy(bytes)
  for (let region = Math.floor(map.size / REGION); region * REGION < size; region += 1)
    for (const part of [bytes, ...map.cached.values()])
      if (part === bytes || region < 8 * SECTOR)
        part[region >> 3] = part[region >> 3]! | (1 << (region & 7))
  return { size, bytes, cached: map.cached }
}

export class RegionDisk {
  readonly #world: { readonly scheduler: Scheduler; readonly random: Random }
  readonly #journal: { conduct: JournalConduct; hasFailed: boolean }
  readonly #maps = new Map<string, DiskMap>()

  constructor(
    world: { scheduler: Scheduler; random: Random },
    journal: { conduct: JournalConduct; hasFailed: boolean },
  ) {
    this.#world = world
    this.#journal = journal
  }

  remove(disk: string): void {
    this.#maps.delete(disk)
  }

  open(life: Life, disk: string, size: number, fresh: boolean): RegionStore {
    const found = this.#maps.get(disk)
    const length = bitmapBytes(size, REGION)
    const map =
      found === undefined || fresh || found.size > size
        ? { size, bytes: Buffer.alloc(length, fresh ? 0 : 0xff), cached: new Map<number, Buffer>() }
        : grown(found, size)
    this.#maps.set(disk, map)
    return {
      regionBytes: REGION,
      found: Buffer.from(map.bytes),
      save: (bitmap, sectors) => this.#save(life, map, Buffer.from(bitmap), sectors),
      close: () => Promise.resolve(),
    }
  }

  /** Whether a sector of the disk lies in a region that is marked, whatever a crash leaves. */
  marks(disk: string, sector: number): boolean {
    const map = this.#maps.get(disk)
    if (map === undefined) return false
    const region = Math.floor((sector * SECTOR) / REGION)
    const bit = 1 << (region & 7)
    const byte = region >> 3
    if ((map.bytes[byte]! & bit) === 0) return false
    const at = Math.floor(byte / SECTOR)
    const cached = map.cached.get(at)
    return cached === undefined || (cached[byte - at * SECTOR]! & bit) !== 0
  }

  /** The process is gone, and the power with it. */
  crash(): void {
    for (const { bytes, cached } of this.#maps.values()) {
      for (const [sector, content] of cached)
        if (this.#world.random.chance(0.5)) content.copy(bytes, sector * SECTOR)
      cached.clear()
    }
  }

  #save(life: Life, map: DiskMap, bitmap: Buffer, sectors: readonly number[]): Promise<void> {
    const { scheduler, random } = this.#world
    const fails = random.chance(this.#journal.conduct.failures)
    for (const sector of sectors)
      map.cached.set(sector, bitmap.subarray(sector * SECTOR, (sector + 1) * SECTOR))
    return new Promise((resolve, reject) => {
      scheduler.after(random.delay(0, this.#journal.conduct.slowestMs), life, 'regions', () => {
        if (fails) {
          this.#journal.hasFailed = true
          return reject(new Fault('IO', 'injected failure of the region map'))
        }
        for (const sector of sectors) {
          map.cached.get(sector)?.copy(map.bytes, sector * SECTOR)
          map.cached.delete(sector)
        }
        resolve()
      })
    })
  }
}
