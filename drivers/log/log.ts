/**
 * The log layer: notes which blocks are changed, for incremental backups.
 *
 * Invariants:
 *  - A block is marked before a change of it begins. A change that is under way when a backup begins is marked once more
 *    when it ends, because the backup may have read the block before it.
 *  - A change that failed is marked all the same: it may have happened in part.
 *  - After anything but a clean close every block counts as changed.
 */

import type { BlockDevice, RequestFlags } from '../../core/block-device.ts'
import type { ChangeLog } from '../../core/change-log.ts'
import { Fault } from '../../core/fault.ts'
import { isPromise, type MaybePromise } from '../../core/maybe-promise.ts'
import { formatSize, GiB, KiB, MiB } from '../../core/units.ts'
import { deviceBelow, sizeSetting, type Driver } from '../driver.ts'
import { Layer } from '../../core/layer.ts'
import { bytesFor } from './change-map.ts'
import { Changes, type Known } from './changes.ts'
import { LogFile } from './log-file.ts'

class LogDevice extends Layer {
  readonly #file: LogFile
  readonly #changes: Changes
  #closed: Promise<void> | undefined

  constructor(below: BlockDevice, file: LogFile, loaded: Known) {
    super(below)
    this.#file = file
    this.#changes = new Changes(file.path, loaded)
  }

  override get changeLog(): ChangeLog {
    return this.#changes
  }

  override write(from: Buffer, at: number, flags: RequestFlags): MaybePromise<void> {
    const begun = this.#mark(at, from.length)
    return this.#settled(begun, at, from.length, this.below.write(from, at, flags))
  }

  override zero(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const begun = this.#mark(at, length)
    return this.#settled(begun, at, length, this.below.zero(at, length, flags))
  }

  override trim(at: number, length: number, flags: RequestFlags): MaybePromise<void> {
    const begun = this.#mark(at, length)
    return this.#settled(begun, at, length, this.below.trim(at, length, flags))
  }

  override async resize(size: number): Promise<void> {
    try {
      await super.resize(size)
    } finally {
      this.#changes.resize(this.below.geometry.size)
    }
  }

  override close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    try {
      await super.close()
    } finally {
      await this.#file.save(this.#changes.final())
    }
  }

  #mark(at: number, length: number): number {
    this.#changes.mark(at, length)
    return this.#changes.begun
  }

  #settled(
    begun: number,
    at: number,
    length: number,
    change: MaybePromise<void>,
  ): MaybePromise<void> {
    if (!isPromise(change)) return undefined
    return change.finally(() => {
      if (this.#changes.begun !== begun) this.#changes.mark(at, length)
    })
  }
}

const USUAL_BLOCK = 64 * KiB
/** Memory for one map. */
const MOST_BITS = 64 * MiB

export const log: Driver = {
  name: 'log',
  kind: 'layer',
  target: 'path of the file that keeps the log; it is made where it is missing',
  keys: {
    block: {
      meaning: 'bytes behind one entry, a power of two',
      values: `4K-1G; what the file has, or ${USUAL_BLOCK / KiB}K, unless given`,
    },
  },
  open: async (stage, given, context) => {
    const below = deviceBelow(given)
    const { size } = below.geometry
    const otherwise = sizeSetting(stage, 'block', { least: 4 * KiB, most: GiB }, USUAL_BLOCK)
    const block = stage.settings.has('block') ? otherwise : undefined
    if (!Number.isInteger(Math.log2(otherwise)) || bytesFor(size, otherwise) > MOST_BITS) {
      throw new Fault('INVALID', `blocks of ${formatSize(otherwise)} do not fit a change log`, {
        where: `log:${stage.target}`,
        remedy: `give block= a power of two that leaves at most ${formatSize(MOST_BITS)} of bits`,
      })
    }
    const file = await LogFile.open(stage.target, context.logger)
    try {
      const loaded = await file.load(size, block, otherwise)
      if (loaded.unknown !== undefined) {
        const { path } = file
        context.logger.warn({ path, reason: loaded.unknown }, 'every block counts as changed')
      }
      return new LogDevice(below, file, loaded)
    } catch (error) {
      await file.abandon()
      throw error
    }
  },
}
