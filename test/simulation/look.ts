/**
 * Looks through the layers of a side at once, without an event: image and journal answer while they are being probed. What is
 * returned is overwritten by the next look at the same side.
 */

import { strict as expect } from 'node:assert'

import { glimpse, sectorBuffer, type Content } from './sectors.ts'
import type { Side } from './world.ts'

/** What a primary's disks are known to hold: the images, and what is still on its way into them. */
export function completedOf(side: Side): readonly Content[] {
  if (side.disks.every(({ layers }) => !layers.isBusy))
    return side.images.map(({ completed }) => completed)
  return look(side, 'completed')
}

/** What a guest would read now. */
export function readable(side: Side): readonly Content[] {
  return look(side, 'bytes')
}

function look(
  { disks, images, journal, sight }: Side,
  at: 'bytes' | 'completed',
): readonly Content[] {
  journal.probing = true
  for (const [disk, { layers }] of disks.entries()) {
    const image = images[disk]!
    const { buffer, content } = sight[disk]!
    image.probing = at
    const result = layers.read(buffer.bytes, 0)
    image.probing = undefined
    expect(result === undefined, 'a probe is answered at once')
    glimpse(buffer.words, content)
  }
  journal.probing = false
  return sight.map(({ content }) => content)
}

/** Room for what is seen of a disk. */
export interface Sight {
  readonly buffer: ReturnType<typeof sectorBuffer>
  readonly content: Content
}

export function sightOf(sectors: number): Sight {
  return { buffer: sectorBuffer(sectors), content: new Int32Array(sectors) }
}
