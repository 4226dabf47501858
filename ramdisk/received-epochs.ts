/**
 * What one disk of a secondary has received and not committed: the epoch that is still growing, and those between their
 * marker and their commit. Each has a part in memory and, when that was full before its end, a spilled one.
 *
 * Invariants:
 *  - The spilled part of an epoch is newer than its part in memory: once it is begun, all goes there.
 *  - No sector is in both: the image, in which they land one after the other, has at no instant what the epoch had before its end.
 */

import { assert } from '../core/assert.ts'
import { Epoch } from './epoch.ts'
import type { Layer } from './overlay.ts'
import type { PageMemory } from './page-memory.ts'
import type { RecordSource } from './record-source.ts'
import { SpilledEpoch } from './spilled-epoch.ts'

/** The parts of one epoch, oldest first. */
export type Parts = readonly Layer[]

export class ReceivedEpochs {
  readonly #memory: PageMemory
  #size: number
  #pending: Epoch
  #spilled: SpilledEpoch | undefined
  /** Oldest first. */
  #cut: Parts[] = []

  constructor(memory: PageMemory, diskSize: number) {
    this.#memory = memory
    this.#size = diskSize
    this.#pending = new Epoch(memory, diskSize)
  }

  /** The disk has become larger. */
  grow(diskSize: number): void {
    for (const layer of this.layers) layer.grow(diskSize)
    this.#size = diskSize
  }

  /** Whether the growing epoch has a spilled part. */
  get isSpilling(): boolean {
    return this.#spilled !== undefined
  }

  get hasCut(): boolean {
    return this.#cut.length > 0
  }

  /** Bytes of data in the epoch that is still growing. */
  get pendingBytes(): number {
    return this.#pending.bytes + (this.#spilled?.bytes ?? 0)
  }

  /** All parts, oldest first. */
  get layers(): readonly Layer[] {
    return [...this.#cut.flat(), ...this.#parts]
  }

  /** @throws Fault NO_MEMORY leaving all as it was */
  write(from: Buffer, at: number): void {
    assert(!this.isSpilling, 'what is spilled stays the newest')
    this.#pending.write(from, at)
  }

  /** @throws Fault NO_MEMORY leaving all as it was */
  zero(at: number, length: number, punch: boolean): void {
    assert(!this.isSpilling, 'what is spilled stays the newest')
    this.#pending.zero(at, length, punch)
  }

  /** A write that is in the record at `place`. @throws Fault NO_MEMORY leaving all as it was */
  spillWrite(at: number, length: number, place: number, source: RecordSource): void {
    this.#spilledPart(source).write(at, length, place)
    this.#pending.clear(at, length)
  }

  /** @throws Fault NO_MEMORY leaving all as it was */
  spillZero(at: number, length: number, punch: boolean, source: RecordSource): void {
    this.#spilledPart(source).zero(at, length, punch)
    this.#pending.clear(at, length)
  }

  /** The growing epoch is whole, and another one begins. */
  cut(): void {
    this.#cut.push(this.takePending())
  }

  /** @returns the oldest epoch that was cut, whose parts are the caller's now */
  takeCut(): Parts {
    const parts = this.#cut.shift()
    assert(parts !== undefined, 'an epoch is cut before it is sealed')
    return parts
  }

  /** @returns the growing epoch, whose parts are the caller's now; another one begins */
  takePending(): Parts {
    const parts = this.#parts
    this.#pending = new Epoch(this.#memory, this.#size)
    this.#spilled = undefined
    return parts
  }

  discardCut(): void {
    const cut = this.#cut
    this.#cut = []
    for (const part of cut.flat()) part.release()
  }

  #spilledPart(source: RecordSource): SpilledEpoch {
    this.#spilled ??= new SpilledEpoch(this.#memory, this.#size, source)
    return this.#spilled
  }

  get #parts(): Parts {
    return this.#spilled === undefined ? [this.#pending] : [this.#pending, this.#spilled]
  }
}

export function bytesOf(layers: readonly Layer[]): number {
  return layers.reduce((sum, { bytes }) => sum + bytes, 0)
}

/** The bytes of those that are not in memory. */
export function spilledBytesOf(layers: readonly Layer[]): number {
  return bytesOf(layers.filter((layer) => layer instanceof SpilledEpoch))
}
