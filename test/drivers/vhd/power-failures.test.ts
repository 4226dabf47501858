import * as fs from 'node:fs'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { SECTOR } from '../../../core/units.ts'
import { RamDevice } from '../../../drivers/ram.ts'
import { survivePowerFailures, type RecordedFile } from '../../support/power-failures.ts'
import { inspectVhd } from '../../support/vhd-inspector.ts'
import { newVhd, openInMemory } from './vhd-files.ts'

/** Workloads for each kind of image; `npm test` asks for more. */
const WORKLOADS = Number(process.env['POWER_FAILURES'] ?? 1)
const FIRST_SEED = Number(process.env['POWER_FAILURE_SEED'] ?? Date.now() % 1_000_000)
const SECTORS = 96
const SIZE = SECTORS * SECTOR

const none = Array.from({ length: SECTORS }, () => 0)

void t.test('no power failure loses a flushed sector of a dynamic image', async (t) => {
  const image = await newVhd(t.testdir(), SIZE, { block_size: '4K', maximum: '64K' })
  await manyTimes(t, image, none, (file) => openInMemory(file))
})

void t.test('nor of one with blocks of a sector', async (t) => {
  const image = await newVhd(t.testdir(), SIZE, { block_size: '512', maximum: '48K' })
  await manyTimes(t, image, none, (file) => openInMemory(file), 15)
})

void t.test('nor of a differencing image, nor does it show anything but its parent', async (t) => {
  // The parent is shorter than the disk, and every sector of it has a version of its own.
  const parentSectors = SECTORS - 10
  const parent = Buffer.alloc(parentSectors * SECTOR)
  for (let at = 0; at < parent.length; at += 4)
    parent.writeUInt32LE(1 + Math.floor(at / SECTOR), at)
  const folder = t.testdir()
  fs.writeFileSync(join(folder, 'parent.img'), parent)
  const image = await newVhd(
    folder,
    SIZE,
    { block_size: '8K', maximum: '64K' },
    { named: 'parent.img', format: 'aio' },
  )
  const initial = none.map((_, sector) => (sector < parentSectors ? sector + 1 : 0))
  const open = async (file: RecordedFile) => {
    const below = new RamDevice(parent.length)
    below.write(parent, 0)
    return openInMemory(file, below)
  }
  await manyTimes(t, image, initial, open)
})

async function manyTimes(
  t: Test,
  image: Buffer,
  initial: readonly number[],
  open: Parameters<typeof survivePowerFailures>[0]['open'],
  requests = 40,
): Promise<void> {
  let states = 0
  for (let seed = FIRST_SEED; seed < FIRST_SEED + WORKLOADS; seed += 1) {
    states += await survivePowerFailures({
      ...{ seed, image, initial, open },
      requests,
      samples: 3,
      inspect: inspectVhd,
    })
  }
  t.comment(`${states} files from seeds ${FIRST_SEED} to ${FIRST_SEED + WORKLOADS - 1}`)
  t.ok(states > 100)
}
