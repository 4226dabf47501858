/**
 * The secondary's side of comparing disks: says with checksums what a disk would hold if all that came before the question were
 * committed: the received epoch over those that wait for their commit over the committed ones over the image. What the
 * guest here wrote by itself is no part of that.
 *
 * Invariants:
 *  - What is asked about is looked at in the turn of the event loop in which the question arrives (DiskLayers.readReceived).
 *  - 16 What is said to be equal will not be sent, so no journal has it: the image is flushed before its first answer on a link,
 *       since what lies in it may not be durable. What the flusher writes later, the journal keeps until it is flushed.
 *  - 20 At most MOST_ASKED questions are open, with MOST_COMPARED bytes of memory each.
 */

import { AssertionFailure } from '../../core/assert.ts'
import { asFault, Fault } from '../../core/fault.ts'
import type { DiskLayers } from '../../ramdisk/disk-layers.ts'
import type { Link } from '../environment.ts'
import { frame, type Frame } from '../machine/frame.ts'
import type { Summer } from './checksums.ts'
import { MOST_ASKED, MOST_COMPARED } from './comparison.ts'

export class Answers {
  readonly #link: Link
  readonly #summer: Summer
  readonly #durable = new Map<DiskLayers, Promise<void>>()
  #open = 0
  #spare: Buffer[] = []

  constructor(link: Link, summer: Summer) {
    this.#link = link
    this.#summer = summer
  }

  /**
   * @param failed told when the disk cannot be read
   * @throws Fault to end the link of who asks for too much
   */
  answer(question: Frame, disk: DiskLayers, failed: (fault: Fault) => void): void {
    const { extent } = question
    if (extent > MOST_COMPARED)
      throw new Fault('PROTOCOL', `the primary asked for the checksums of ${extent} bytes at once`)
    if (this.#open === MOST_ASKED)
      throw new Fault('PROTOCOL', `the primary asked more than ${MOST_ASKED} questions at once`)
    this.#open += 1
    // The link reuses the frame.
    void this.#answer({ ...question }, disk, failed)
  }

  async #answer(
    { disk: number, position, extent }: Frame,
    disk: DiskLayers,
    failed: (fault: Fault) => void,
  ): Promise<void> {
    const buffer = this.#spare.pop() ?? Buffer.from(new SharedArrayBuffer(MOST_COMPARED))
    const content = buffer.subarray(0, extent)
    let payload: Buffer = Buffer.alloc(0)
    try {
      await disk.readReceived(content, position)
      await this.#flushed(disk)
      payload = await this.#summer.sums(content)
    } catch (error) {
      if (error instanceof AssertionFailure) throw error
      failed(asFault(error, 'IO', 'cannot read what is to be compared'))
    }
    this.#open -= 1
    if (this.#open === 0) this.#spare = []
    else this.#spare.push(buffer)
    this.#link.send(frame('sums', { disk: number, position, extent, payload }))
  }

  #flushed(disk: DiskLayers): Promise<void> {
    let flushed = this.#durable.get(disk)
    if (flushed === undefined) {
      flushed = flush(disk)
      this.#durable.set(disk, flushed)
      // One that failed is tried again for the next question.
      flushed.catch(() => this.#durable.delete(disk))
    }
    return flushed
  }
}

async function flush(disk: DiskLayers): Promise<void> {
  await disk.flushImage()
}
