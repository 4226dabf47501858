/** Everything that a replica keeps on disks: the folder of its journal and maps, and its images, in one recording. */

import type { BlockDevice } from '../../../core/block-device.ts'
import { SECTOR } from '../../../core/units.ts'
import { openFileSegments } from '../../../replication/journal/file-segments.ts'
import type { SegmentStore } from '../../../replication/journal/segments.ts'
import { openFileRegions, removeFileRegions } from '../../../replication/regions/file-regions.ts'
import type { RegionStore } from '../../../replication/regions/region-store.ts'
import { MemoryDevice } from '../../nbd/memory-device.ts'
import { RecordedFiles, turn, type Fate } from './recorded-files.ts'

/** Bytes of disk behind a bit of the map. */
const REGION = 4 * SECTOR

/** Two of them have to be made. */
const FOLDER = '/state/group-vm'

/** Nobody waits longer than this between one step and the next. */
const QUIET_TURNS = 6

/** An image may grow to so much. */
const MOST_BYTES = 64 * SECTOR

const pathOf = (disk: number): string => `/images/${disk}`

export class RecordedStorage {
  readonly #files: RecordedFiles

  private constructor(files: RecordedFiles) {
    this.#files = files
  }

  /** @param contents what the images hold */
  static withImages(contents: readonly Buffer[]): RecordedStorage {
    return new RecordedStorage(
      RecordedFiles.of(new Map(contents.map((bytes, disk) => [pathOf(disk), bytes]))),
    )
  }

  /** How much was done. */
  get steps(): number {
    return this.#files.steps.length
  }

  /** Resolves when nothing more is done by itself. */
  async settled(): Promise<void> {
    for (let before = -1; before !== this.steps;) {
      before = this.steps
      for (let turns = 0; turns < QUIET_TURNS; turns += 1) await turn()
    }
  }

  /** The present bytes of an image. */
  image(disk: number): Buffer {
    return this.#files.bytesOf(pathOf(disk))
  }

  afterCrash(steps: number, fate: Fate, seed: number): RecordedStorage {
    return new RecordedStorage(this.#files.afterCrash(steps, fate, seed))
  }

  /** What an end in order leaves, but for the maps of changed regions, which somebody has removed. */
  async withoutMaps(): Promise<RecordedStorage> {
    const files = this.#files.afterCrash(this.steps, 'kept', 0)
    for (const name of await files.list(FOLDER))
      if (name.endsWith('.map')) await files.remove(`${FOLDER}/${name}`)
    return new RecordedStorage(files.afterCrash(files.steps.length, 'kept', 0))
  }

  openSegments(): Promise<SegmentStore> {
    // Nobody else is in this process.
    return openFileSegments(FOLDER, this.#files, () => Promise.resolve(() => Promise.resolve()))
  }

  openRegions(disk: string, size: number, fresh: boolean): Promise<RegionStore> {
    return openFileRegions(FOLDER, disk, size, REGION, fresh, this.#files)
  }

  removeRegions(disk: string): Promise<void> {
    return removeFileRegions(FOLDER, disk, this.#files)
  }

  /** Disks that there are maps of. */
  async maps(): Promise<string[]> {
    const names = await this.#files.list(FOLDER)
    return names.flatMap((name) => /^changed-(.*)\.map$/.exec(name)?.[1] ?? [])
  }

  /** @param slowness turns that a write waits before it begins */
  async openImage(disk: number, slowness = 0): Promise<BlockDevice> {
    const file = await this.#files.open(pathOf(disk), 'change')
    const size = Math.floor(this.image(disk).length / SECTOR) * SECTOR
    const device = new MemoryDevice(MOST_BYTES, { size })
    this.image(disk).copy(device.bytes, 0, 0, size)
    const write = device.write.bind(device)
    const zero = device.zero.bind(device)
    const flush = device.flush.bind(device)
    device.write = async (from, at, flags) => {
      for (let turns = 0; turns < slowness; turns += 1) await turn()
      await file.write([from], at)
      await write(from, at, flags)
    }
    device.zero = (at, length, flags) =>
      file.write([Buffer.alloc(length)], at).then(() => zero(at, length, flags))
    device.trim = (at, length, flags) => device.zero(at, length, flags)
    device.flush = () => file.sync().then(() => flush())
    device.can = { ...device.can, resize: true }
    const resize = async (wanted: number): Promise<void> => {
      const { geometry } = device
      if (wanted > geometry.size)
        await file.write([Buffer.alloc(wanted - geometry.size)], geometry.size)
      device.geometry = { ...geometry, size: wanted }
    }
    return Object.assign(device, { resize })
  }
}
