/** A journal of any size is recovered within the memory that the group has. */

import t from 'tap'

import { SILENT } from '../../../core/logger.ts'
import { KiB, MiB } from '../../../core/units.ts'
import { seededRandom } from '../../../core/seeded-random.ts'
import { DiskLayers } from '../../../ramdisk/disk-layers.ts'
import { PageMemory, SLAB } from '../../../ramdisk/page-memory.ts'
import type { GroupEnvironment } from '../../../replication/environment.ts'
import { Journal } from '../../../replication/journal/journal.ts'
import { recoverJournal } from '../../../replication/journal/recover-group.ts'
import { frame, PUNCH } from '../../../replication/machine/frame.ts'
import { FRESH, type ReplicaState } from '../../../replication/machine/replica-state.ts'
import { NODE_TIMERS } from '../../../replication/node-timers.ts'
import { MemoryDevice } from '../../nbd/memory-device.ts'
import { MemorySegments } from './memory-segments.ts'

const SIZE = 6 * MiB
const MEMORY = 8 * SLAB
const NAMES = ['a', 'b']
const IDENTITY = { group: 'vm', disks: NAMES.map((name) => ({ name, size: SIZE })) }
const at = (checkpoint: number): ReplicaState => ({ ...FRESH, generation: 'g1', checkpoint })

/** Epochs that overwrite each other in pieces, and one that was not committed. @returns what the disks have to hold */
async function fill(store: MemorySegments): Promise<Buffer[]> {
  const journal = new Journal({
    ...{ store, identity: IDENTITY, replica: 'r1', recovered: undefined, logger: SILENT },
    ...{ limit: 64 * MiB, state: at(0), onFailure: () => undefined },
  })
  await journal.restart()
  const contents = NAMES.map(() => Buffer.alloc(SIZE))
  const random = seededRandom(11)
  const write = (value: number, keep: boolean): void => {
    const disk = Math.floor(random() * NAMES.length)
    const length = random() < 0.3 ? 256 * KiB : 4 * KiB
    const position = Math.floor((random() * (SIZE - length)) / 512) * 512
    const payload = Buffer.alloc(length, value)
    journal.append(frame('write', { disk, position, payload }))
    if (keep) payload.copy(contents[disk]!, position)
  }
  for (const checkpoint of [1, 2, 3]) {
    for (let count = checkpoint === 2 ? 400 : 10; count > 0; count -= 1) {
      write(1 + (count % 200), true)
      if (count % 40 !== 0) continue
      journal.append(frame('zero', { disk: 1, position: MiB, extent: MiB, flags: PUNCH }))
      contents[1]!.fill(0, MiB, 2 * MiB)
    }
    await journal.commit(checkpoint, at(checkpoint))
  }
  write(255, false)
  await journal.sync()
  await journal.close()
  return contents
}

interface Opened {
  readonly images: readonly MemoryDevice[]
  readonly memory: PageMemory
  /** The most memory that was in use. */
  readonly most: () => number
  readonly recover: () => ReturnType<typeof recoverJournal>
  readonly idle: () => Promise<void>
}

function open(store: MemorySegments, images = NAMES.map(() => new MemoryDevice(SIZE))): Opened {
  const memory = new PageMemory(MEMORY)
  let most = 0
  const disks = images.map((image, index) => {
    const write = image.write.bind(image)
    image.write = (from, position, flags) => {
      most = Math.max(most, memory.bytesInUse)
      return write(from, position, flags)
    }
    const layers = new DiskLayers({
      ...{ image, memory, timers: NODE_TIMERS, onError: () => undefined },
      onFlushed: (checkpoint) => {
        disks[index]!.flushed = checkpoint
      },
    })
    return { name: NAMES[index]!, geometry: image.geometry, layers, flushed: 0 }
  })
  const environment = {
    logger: SILENT,
    newId: () => 'id',
    openSegments: () => Promise.resolve(store),
  } as unknown as GroupEnvironment
  return {
    ...{ images, memory },
    most: () => most,
    recover: () =>
      recoverJournal({
        ...{ group: 'vm', disks, memory, environment, limit: 64 * MiB },
        onFailure: () => undefined,
      }),
    idle: async () => {
      for (const { layers } of disks) await layers.idle()
    },
  }
}

void t.test('an epoch many times larger than the memory is recovered within it', async (t) => {
  const store = new MemorySegments()
  const contents = await fill(store)
  const opened = open(store)
  const { state } = await opened.recover()
  await opened.idle()
  t.equal(state.checkpoint, 3)
  for (const [disk, { bytes }] of opened.images.entries())
    t.ok(bytes.equals(contents[disk]!), `disk ${disk} is checkpoint 3`)
  t.ok(opened.most() <= MEMORY + 4 * SLAB, `${opened.most()} of ${MEMORY} bytes were in use`)
  t.equal(opened.memory.bytesInUse, 0)
})

void t.test('a recovery that is broken off in the middle of an epoch begins anew', async (t) => {
  const store = new MemorySegments()
  const contents = await fill(store)
  const files = [...store.files].map(([number, bytes]) => [number, Buffer.from(bytes)] as const)
  const first = open(store)
  // The power fails while the images are being written: what they have is a part.
  const before = await new Promise<Buffer[]>((resolve) => {
    const [image] = first.images
    const write = image!.write.bind(image)
    let writes = 0
    image!.write = (from, position, flags) => {
      writes += 1
      if (writes === 20) resolve(first.images.map(({ bytes }) => Buffer.from(bytes)))
      return write(from, position, flags)
    }
    void first.recover()
  })
  t.notOk(before.every((bytes, disk) => bytes.equals(contents[disk]!)))
  const images = before.map((bytes) => {
    const image = new MemoryDevice(SIZE)
    bytes.copy(image.bytes)
    return image
  })
  const second = open(MemorySegments.of(files), images)
  await second.recover()
  await second.idle()
  for (const [disk, { bytes }] of images.entries())
    t.ok(bytes.equals(contents[disk]!), `disk ${disk} is checkpoint 3`)
})
