/**
 * Looks through the layers of a side at once, without an event: image and journal answer while they are being probed. What is
 * returned is overwritten by the next look at the same side.
 */

import { strict as expect } from 'node:assert'

import { SECTOR } from '../../core/units.ts'
import { glimpse, sectorBuffer, type Content } from './sectors.ts'
import { diskName } from './side-disks.ts'
import type { Side } from './world.ts'

/** What is there of each disk, by slot; undefined where the group has none. */
export type Contents = readonly (Content | undefined)[]

/** What a primary's disks are known to hold: the images, and what is still on its way into them. */
export function completedOf(side: Side): Contents {
  if (side.disks.every(({ layers }) => !layers.isBusy))
    return side.images.map(({ completed }, slot) =>
      side.slots.memberOf(slot) === undefined ? undefined : completed,
    )
  return look(side, 'completed')
}

/** What a guest would read now. */
export function readable(side: Side): Contents {
  return look(side, 'bytes')
}

function look({ slots, images, journal, sight }: Side, at: 'bytes' | 'completed'): Contents {
  journal.probing = true
  const contents = images.map((image, slot) => {
    const layers = slots.memberOf(slot)?.layers
    if (layers === undefined) return undefined
    const { buffer, content } = sightOn(sight, slot, layers.size / SECTOR)
    image.probing = at
    const result = layers.read(buffer.bytes, 0)
    image.probing = undefined
    expect(result === undefined, 'a probe is answered at once')
    glimpse(buffer.words, content)
    return content
  })
  journal.probing = false
  return contents
}

/** Whether checkpoints have a disk. */
export function counts({ group, slots }: Side, slot: number): boolean {
  if (slots.memberOf(slot) === undefined) return false
  const apart = group.primary?.machine.apart ?? group.secondary.machine.state.apart
  return apart[diskName(slot)] === undefined
}

/** Whether a guest may look: a copy that is not whole, or was never made, is served to nobody. */
export function isServed({ group }: Side): boolean {
  const { consistent, generation } = group.secondary.machine.state
  return group.primary !== undefined || (consistent && generation !== null)
}

/** Room for what is seen of a disk. */
export interface Sight {
  readonly buffer: ReturnType<typeof sectorBuffer>
  readonly content: Content
}

/** Disks grow. */
export function sightOn(sight: Sight[], slot: number, sectors: number): Sight {
  if (sight[slot]?.content.length !== sectors) sight[slot] = sightOf(sectors)
  return sight[slot]
}

export function sightOf(sectors: number): Sight {
  return { buffer: sectorBuffer(sectors), content: new Int32Array(sectors) }
}
