/** A disk of a secondary that becomes larger while its layers hold data. */

import t from 'tap'

import { isPromise } from '../../core/maybe-promise.ts'
import { KiB, MiB, SECTOR } from '../../core/units.ts'
import { DiskLayers } from '../../ramdisk/disk-layers.ts'
import { PageMemory } from '../../ramdisk/page-memory.ts'
import { ManualTimers, runUntil, tagged, tagsOf, UnrulyImage } from './unruly-image.ts'
import { UnrulyRecords } from './unruly-records.ts'

/** A leaf of the index of pages, and less than one. */
const BEFORE = [128 * KiB, 40 * SECTOR]
/** The next level of the index of pages, and of that of sectors; and levels above. */
const AFTER = [256 * KiB, 16 * MiB]

/** Where an epoch is when its disk grows. */
const PLACES = ['pending', 'cut', 'sealed'] as const

/** A disk of `before` bytes on an image that has room for `after`. */
function open(before: number, after: number) {
  const image = new UnrulyImage(after, 1)
  image.unruly = false
  const { geometry } = image
  const become = (size: number): unknown =>
    Object.defineProperty(image, 'geometry', {
      value: { ...geometry, size },
      configurable: true,
    })
  become(before)
  const timers = new ManualTimers()
  const memory = new PageMemory(16 * MiB)
  const records = new UnrulyRecords(1)
  records.calm()
  const layers = new DiskLayers({
    ...{ image, memory, timers },
    onFlushed: () => undefined,
    onError: (fault) => {
      throw fault
    },
  })
  const received = async (at: number, length: number): Promise<number[]> => {
    const into = Buffer.alloc(length)
    const reading = layers.readReceived(into, at)
    if (isPromise(reading)) await runUntil(reading, image, timers)
    return tagsOf(into)
  }
  const spill = (tag: number, at: number, length: number): void =>
    layers.spillWrite(at, length, records.add(at, tagged(tag, length)), records)
  const grow = (): void => {
    become(after)
    layers.grow(after)
  }
  return { image, timers, memory, layers, received, spill, grow }
}

for (const before of BEFORE)
  for (const after of AFTER)
    for (const place of PLACES)
      void t.test(`from ${before} to ${after} bytes, with an epoch ${place}`, async (t) => {
        const { image, timers, memory, layers, received, spill, grow } = open(before, after)
        const last = before - SECTOR
        layers.receiveWrite(tagged(1, 2 * SECTOR), 0)
        layers.receiveZero(2 * SECTOR, SECTOR, true)
        spill(2, 3 * SECTOR, SECTOR)
        spill(3, last, SECTOR)
        if (place !== 'pending') layers.cut()
        if (place === 'sealed') layers.seal(1)
        else await layers.localWrite(tagged(4, SECTOR), last)

        grow()

        t.equal(layers.size, after)
        t.same(await received(0, 5 * SECTOR), [1, 1, 0, 2, 0])
        t.same(await received(last, 2 * SECTOR), [3, 0], 'what it gained is of nobody yet')
        const end = after - SECTOR
        // The rest of an epoch that spills is spilled.
        if (place === 'pending') spill(5, end, SECTOR)
        else layers.receiveWrite(tagged(5, SECTOR), end)
        spill(6, before, SECTOR)
        t.same(await received(end, SECTOR), [5])
        if (place === 'cut') layers.seal(1)
        layers.cut()
        layers.seal(2)
        await layers.localWrite(tagged(7, SECTOR), before + SECTOR)
        await runUntil(layers.idle(), image, timers)
        const saved = tagsOf(image.durable)
        t.same(saved.slice(0, 5), [1, 1, 0, 2, 0])
        t.equal(saved[last / SECTOR], 3)
        t.equal(saved[before / SECTOR], 6)
        t.equal(saved[before / SECTOR + 1], 0, "the guest's own write is in memory only")
        t.equal(saved.at(-1), 5)
        await layers.close()
        t.equal(memory.bytesInUse, 0)
      })
