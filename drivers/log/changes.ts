/** The changes of a disk in the hands of a backup: one map for the backup under way, one for what changes meanwhile. Pure. */

import type { ChangedRange, ChangeLog, ChangeLogStatus } from '../../core/change-log.ts'
import { Fault } from '../../core/fault.ts'
import { ChangeMap } from './change-map.ts'

/** A map, and why it has everything marked where that is not because all was changed. */
export interface Known {
  readonly map: ChangeMap
  readonly unknown: string | undefined
}

export class Changes implements ChangeLog {
  readonly #path: string
  #map: ChangeMap
  #unknown: string | undefined
  #backup: Known | undefined
  #begun = 0

  constructor(path: string, { map, unknown }: Known) {
    this.#path = path
    this.#map = map
    this.#unknown = unknown
  }

  /** How many backups were begun: a change that sees two numbers counts for both. */
  get begun(): number {
    return this.#begun
  }

  get status(): ChangeLogStatus {
    return {
      path: this.#path,
      block: this.#map.block,
      changedBytes: this.#map.changedBytes,
      backupBytes: this.#backup?.map.changedBytes,
      unknown: this.#unknown ?? this.#backup?.unknown,
    }
  }

  mark(at: number, length: number): void {
    this.#map.mark(at, length)
  }

  begin(): void {
    if (this.#backup !== undefined) {
      throw new Fault('NOT_PERMITTED', 'a backup of this disk is under way', {
        where: this.#path,
        remedy: 'end it first, as failed if whoever began it is gone',
      })
    }
    this.#backup = { map: this.#map, unknown: this.#unknown }
    this.#map = new ChangeMap(this.#map.size, this.#map.block)
    this.#unknown = undefined
    this.#begun += 1
  }

  next(from: number): ChangedRange | undefined {
    return this.#underWay().map.next(from)
  }

  end(succeeded: boolean): void {
    const backup = this.#underWay()
    this.#backup = undefined
    if (succeeded) return
    this.#map.add(backup.map)
    this.#unknown ??= backup.unknown
  }

  resize(size: number): void {
    this.#map.resize(size)
    this.#backup?.map.resize(size)
  }

  /** All that the next backup must copy; one that is under way has failed. */
  final(): Known {
    if (this.#backup !== undefined) this.end(false)
    return { map: this.#map, unknown: this.#unknown }
  }

  #underWay(): Known {
    if (this.#backup !== undefined) return this.#backup
    throw new Fault('NOT_PERMITTED', 'no backup of this disk is under way', {
      where: this.#path,
      remedy: 'begin one first',
    })
  }
}
