/** When an epoch counts as committed: after the log has it, for all disks at once, and without waiting for the images. */

import t from 'tap'

import { MiB, SECTOR } from '../../core/units.ts'
import { DiskLayers } from '../../ramdisk/disk-layers.ts'
import { PageMemory } from '../../ramdisk/page-memory.ts'
import { SILENT } from '../../core/logger.ts'
import { EpochKeeper } from '../../replication/epoch-keeper.ts'
import { MEMORY_LOG, type EpochLog } from '../../replication/journal/epoch-log.ts'
import { FRESH } from '../../replication/machine/replica-state.ts'
import type { SecondaryInput } from '../../replication/machine/secondary-io.ts'
import { NODE_TIMERS } from '../../replication/node-timers.ts'
import { Troubles } from '../../replication/troubles.ts'
import { MemoryDevice } from '../nbd/memory-device.ts'

const DISKS = 3

/** A log whose commits are answered by the test, and disks whose images answer nothing. */
function open(): {
  keeper: EpochKeeper
  layers: readonly DiskLayers[]
  told: SecondaryInput[]
  answer: () => void
} {
  const memory = new PageMemory(16 * MiB)
  const layers = Array.from({ length: DISKS }, () => {
    const image = new MemoryDevice(64 * SECTOR)
    image.mode = 'held'
    return new DiskLayers({
      image,
      memory,
      timers: NODE_TIMERS,
      onFlushed: () => undefined,
      onError: () => undefined,
    })
  })
  let answer: (() => void) | undefined
  const log: EpochLog = {
    ...MEMORY_LOG,
    commit: (_checkpoint, _state, committed) =>
      new Promise((resolve) => {
        answer = () => {
          committed()
          resolve()
        }
      }),
  }
  const told: SecondaryInput[] = []
  const environment = { logger: SILENT, onEvent: () => undefined }
  const keeper = new EpochKeeper(log, MiB, {
    layers: () => layers,
    troubles: new Troubles('vm', environment),
    timers: NODE_TIMERS,
    nowMs: () => 0,
    step: (input) => told.push(input),
  })
  return { keeper, layers, told, answer: () => answer?.() }
}

const turn = (): Promise<void> => new Promise(setImmediate)

/** What a guest reads from the first sector of each disk, at once. */
function firstBytes(layers: readonly DiskLayers[]): number[] {
  return layers.map((each) => {
    const into = Buffer.alloc(SECTOR)
    void each.read(into, 0)
    return into[0] ?? -1
  })
}

void t.test('an epoch counts when the log has it, for all disks at once', async (t) => {
  const { keeper, layers, told, answer } = open()
  for (const each of layers) each.receiveWrite(Buffer.alloc(SECTOR, 7), 0)
  keeper.commit(1, FRESH)
  await turn()
  t.same(told, [], 'not before')
  answer()
  await turn()
  t.match(told, [{ type: 'committed', checkpoint: 1 }])
  t.same(firstBytes(layers), [7, 7, 7])
})

void t.test('a checkpoint does not wait for the images, however much is before it', async (t) => {
  const { keeper, layers, told, answer } = open()
  for (let checkpoint = 1; checkpoint <= 5; checkpoint += 1) {
    for (const each of layers) each.receiveWrite(Buffer.alloc(32 * SECTOR, checkpoint), 0)
    keeper.commit(checkpoint, FRESH)
    answer()
    await turn()
    t.equal(told.length, checkpoint, `${checkpoint} is committed`)
    t.same(firstBytes(layers), [checkpoint, checkpoint, checkpoint])
  }
  t.ok(
    layers.every(({ isBusy }) => isBusy),
    'and no image has had any of it',
  )
})
