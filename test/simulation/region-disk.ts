/** Where a simulated replica keeps the map of a disk's changed regions. A sector that was not flushed when it crashed may be either. */

import { Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
import { bitmapBytes, type RegionStore } from '../../replication/regions/region-store.ts'
import type { JournalConduct } from './segments.ts'
import type { Random } from './random.ts'
import type { Life, Scheduler } from './scheduler.ts'

/** Bytes of disk behind one bit: a disk of a simulation has several. */
const REGION = 8 * SECTOR

export class RegionDisk {
  readonly #world: { readonly scheduler: Scheduler; readonly random: Random }
  readonly #journal: { conduct: JournalConduct; hasFailed: boolean }
  readonly #maps = new Map<string, { bytes: Buffer; cached: Map<number, Buffer> }>()

  constructor(
    world: { scheduler: Scheduler; random: Random },
    journal: { conduct: JournalConduct; hasFailed: boolean },
  ) {
    this.#world = world
    this.#journal = journal
  }

  open(life: Life, disk: string, size: number, fresh: boolean): RegionStore {
    const found = this.#maps.get(disk)
    const length = bitmapBytes(size, REGION)
    const map =
      found === undefined || fresh
        ? { bytes: Buffer.alloc(length, fresh ? 0 : 0xff), cached: new Map<number, Buffer>() }
        : found
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
    const bits = [map.bytes[byte]!]
    const at = Math.floor(byte / SECTOR)
    const cached = map.cached.get(at)
    if (cached !== undefined) bits.push(cached[byte - at * SECTOR]!)
    return bits.every((each) => (each & bit) !== 0)
  }

  /** The process is gone, and the power with it. */
  crash(): void {
    for (const { bytes, cached } of this.#maps.values()) {
      for (const [sector, content] of cached)
        if (this.#world.random.chance(0.5)) content.copy(bytes, sector * SECTOR)
      cached.clear()
    }
  }

  #save(
    life: Life,
    map: { bytes: Buffer; cached: Map<number, Buffer> },
    bitmap: Buffer,
    sectors: readonly number[],
  ): Promise<void> {
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
