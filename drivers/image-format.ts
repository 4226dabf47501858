/**
 * What an image format offers beyond a driver: making images, describing and checking them, and telling what one layer
 * of a chain holds. `colotap image` works on any format through this.
 *
 * Invariants:
 *  - describe() and check() without a repair change nothing.
 *  - create() makes a file that was not there, whole, or leaves none; it never replaces anything.
 */

import type { BlockDevice, Extent } from '../core/block-device.ts'
import type { Logger } from '../core/logger.ts'
import type { MaybePromise } from '../core/maybe-promise.ts'
import type { SettingDescription } from './driver.ts'

/** How to open an image. */
export interface ImageUse {
  readonly readOnly: boolean
  readonly logger: Logger
  /** Folders in which parents may lie, besides the folder of the image (backing-chain.ts). */
  readonly parents: readonly string[]
  /** Leave the parent closed: what this layer does not hold reads as zeroes. */
  readonly alone?: boolean
}

/** One image of a chain, open. */
export interface ImageLayer extends BlockDevice {
  /** What this layer itself holds: `hole` is what shows the parent, or zeroes where there is none. */
  held(at: number, length: number): MaybePromise<Extent[]>
}

/** The parent as an image names it. */
export interface BackingReference {
  /** As it is written in the image. */
  readonly named: string
  /** The name of an ImageFormat; undefined where the image does not say. */
  readonly format: string | undefined
}

/** The same, looked for where parents may lie. */
export interface BackingPlace extends BackingReference {
  /** Undefined where it is not there, or may not be there. */
  readonly path: string | undefined
}

export interface ImageDescription {
  readonly path: string
  readonly format: string
  /** Bytes, as a guest sees them. */
  readonly size: number
  /** Bytes of the file, and what the file system has allocated for it. */
  readonly fileSize: number
  readonly allocated: number
  readonly backing: BackingPlace | undefined
  /** What only this format has: names and values to show, in this order. */
  readonly details: Readonly<Record<string, string | number | boolean>>
}

export interface CheckReport {
  /** What makes data wrong or unreadable. */
  readonly errors: readonly string[]
  /** What only wastes space. */
  readonly leaks: readonly string[]
  /** What was mended, where that was asked for. */
  readonly repaired: readonly string[]
}

export type Repair = 'none' | 'leaks' | 'all'

export interface NewImage {
  readonly size: number
  /** Keys of `creation`, with what was given for them. */
  readonly settings: ReadonlyMap<string, string>
  readonly backing: BackingReference | undefined
}

/** Told how far long work is: bytes done of all. */
export type Progress = (done: number, total: number) => void

/** A state of the disk that is kept within its image. */
export interface InternalSnapshot {
  readonly id: string
  readonly name: string
  /** When it was made, since the Epoch. */
  readonly seconds: number
  /** Bytes of the disk then; undefined where the image does not say. */
  readonly diskSize: number | undefined
  /** Bytes of a VM's state that belong to it. */
  readonly vmStateBytes: number
}

/** Works on images that nobody uses; a snapshot is named by its name, or else its id. */
export interface InternalSnapshots {
  list(path: string): Promise<readonly InternalSnapshot[]>
  create(path: string, name: string, progress: Progress): Promise<void>
  /** The disk becomes what it was when the snapshot was made. */
  apply(path: string, name: string, progress: Progress): Promise<void>
  delete(path: string, name: string, progress: Progress): Promise<void>
}

export interface ImageFormat {
  /** The name of its driver. */
  readonly name: string
  /** What other images and qemu call it, the usual name first. */
  readonly aliases: readonly string[]
  /** The keys of `image create -o`, besides `backing` and `backing_format`. */
  readonly creation: Readonly<Record<string, SettingDescription>>
  open(path: string, use: ImageUse): Promise<ImageLayer>
  create(path: string, image: NewImage, progress: Progress): Promise<void>
  /** @param parents as in ImageUse */
  describe(path: string, parents: readonly string[]): Promise<ImageDescription>
  check(path: string, repair: Repair, progress: Progress): Promise<CheckReport>
  /** Undefined where the format has none. */
  readonly internalSnapshots?: InternalSnapshots
}
