/**
 * Room for new blocks at the end of the image, and the footer behind them.
 *
 * Invariants:
 *  - Room that is handed out reads as zeroes, is within the file, before its last footer, and is never handed out again.
 *  - Once room was asked for, the file ends with a whole footer at every moment, a power failure included: a new end is
 *    durable before room in front of it is handed out. Else the file could end with what a guest has written, and a
 *    guest can write what looks like a footer.
 *  - What an earlier session has left behind the last block (it was not in the table, so it does not exist) is gone
 *    before that room is used.
 */

import { Fault } from '../../core/fault.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import { nextSlot, slotSize, slotStride } from '../../formats/vhd/layout.ts'
import type { ImageFile } from '../aio/aio-device.ts'

/** Bytes by which a file grows where the disk may need as much: it is sparse, and cut at the close. */
const STEP = 64 * MiB

export interface SlotsOptions {
  readonly path: string
  readonly blockSize: number
  /** Everything before this byte is in use. */
  readonly end: number
  /** Blocks of the disk that are not in the image. */
  readonly wanted: number
  /** Whether the file ends with the right footer. */
  readonly hasFooter: boolean
  /** The bytes of the footer that belongs at the end. */
  footer(): Buffer
}

export class Slots {
  readonly #file: ImageFile
  readonly #options: SlotsOptions
  readonly #size: number
  /** Everything before this byte is in use. */
  #end: number
  #wanted: number
  /** Slots end before this byte; it is where the last footer is, if there is one. */
  #limit: number
  #hasFooter: boolean
  /** Whether what is behind #end has been made empty. */
  #prepared = false
  /** Whether this session has moved the end of the file. */
  #changed = false
  #growing: Promise<void> | undefined

  constructor(file: ImageFile, options: SlotsOptions) {
    this.#file = file
    this.#options = options
    this.#size = slotSize(options.blockSize)
    this.#end = options.end
    this.#wanted = options.wanted
    this.#limit = file.geometry.size - SECTOR
    this.#hasFooter = options.hasFooter
  }

  /** More blocks of the disk will want room. */
  want(blocks: number): void {
    this.#wanted += blocks
  }

  /** The byte where a new block begins. @throws Fault NO_SPACE */
  take(): MaybePromise<number> {
    const at = this.#next()
    if (!this.#prepared || at + this.#size > this.#limit) return this.#takeLater()
    this.#end = at + this.#size
    this.#wanted -= 1
    if (this.#file.can.resize) return at
    // On a block device, what is behind the blocks is whatever was there before.
    return this.#cleared(at)
  }

  /** Writes the footer at the end: it is another one now. */
  async rewriteFooter(): Promise<void> {
    this.#hasFooter = false
    await this.#file.write(this.#options.footer(), this.#limit, 0)
    this.#hasFooter = true
  }

  /** Lets the file end with a footer behind its last block, if this session has grown it or the footer was lost. */
  async seal(): Promise<void> {
    if (this.#hasFooter && !this.#changed) return
    if (!this.#file.can.resize) {
      if (!this.#hasFooter && this.#limit >= this.#end) await this.rewriteFooter()
      return
    }
    await this.cut()
  }

  #next(): number {
    return nextSlot(this.#end, this.#options.blockSize)
  }

  async #takeLater(): Promise<number> {
    while (!this.#prepared || this.#next() + this.#size > this.#limit) {
      this.#growing ??= this.#grow().finally(() => {
        this.#growing = undefined
      })
      await this.#growing
    }
    return this.take()
  }

  async #cleared(at: number): Promise<number> {
    await this.#file.zero(at, this.#size, 0)
    return at
  }

  async #grow(): Promise<void> {
    if (!this.#file.can.resize) {
      if (this.#next() + this.#size > this.#limit) throw this.#full()
      this.#prepared = true
      return
    }
    if (!this.#prepared) await this.cut()
    // Unless all of this succeeds, the next one begins by cutting off what it finds.
    this.#prepared = false
    const old = this.#limit
    const stride = slotStride(this.#options.blockSize)
    const slots = Math.max(1, Math.min(this.#wanted, Math.floor(STEP / stride)))
    const end = this.#next() + slots * stride
    await this.#file.extend(this.#options.footer(), end)
    await this.#file.flush()
    // The old footer is in the middle of a block now. Until it is gone, no room is given out.
    await this.#file.zero(old, SECTOR, 0)
    this.#limit = end
    this.#prepared = true
  }

  /** Lets the file end with a footer right behind the last block. */
  async cut(): Promise<void> {
    if (!this.#file.can.resize) return
    this.#changed = true
    const { size } = this.#file.geometry
    if (size >= this.#end + SECTOR) {
      await this.#file.write(this.#options.footer(), this.#end, 0)
      await this.#file.flush()
      if (size > this.#end + SECTOR) await this.#file.resize(this.#end + SECTOR)
    } else {
      await this.#file.extend(this.#options.footer(), Math.max(this.#end, size))
      await this.#file.flush()
    }
    this.#limit = this.#file.geometry.size - SECTOR
    this.#hasFooter = true
  }

  #full(): Fault {
    const needed = this.#next() + this.#size + SECTOR
    return new Fault('NO_SPACE', 'the block device has no room for another block of the VHD', {
      where: this.#options.path,
      remedy: `extend the device to at least ${needed} bytes, and open the image anew`,
    })
  }
}
