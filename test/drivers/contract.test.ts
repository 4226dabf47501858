import * as fs from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import type { BlockDevice } from '../../core/block-device.ts'
import { SILENT } from '../../core/logger.ts'
import { openImageFile, type ImageFileOptions } from '../../drivers/aio/aio.ts'
import { Guard } from '../../drivers/guard.ts'
import { openPipeline } from '../../drivers/open.ts'
import { RamDevice } from '../../drivers/ram.ts'
import { DRIVERS } from '../../drivers/registry.ts'
import { checkAgainstModel } from './device-model.ts'
import { openContext } from './open-context.ts'

const SIZE = 64 * 1024

interface Subject {
  readonly name: string
  readonly unit: number
  readonly runs: number
  open(folder: string): Promise<BlockDevice>
}

function file(options: Partial<ImageFileOptions>): Subject['open'] {
  return (folder) => {
    const path = join(folder, 'image')
    fs.writeFileSync(path, '')
    fs.truncateSync(path, SIZE)
    return openImageFile(path, { readOnly: false, logger: SILENT, threads: 2, ...options })
  }
}

const subjects: readonly Subject[] = [
  { name: 'ram', unit: 1, runs: 80, open: () => Promise.resolve(new RamDevice(SIZE)) },
  { name: 'aio', unit: 1, runs: 15, open: file({}) },
  { name: 'aio that keeps its space', unit: 1, runs: 10, open: file({ discard: 'ignore' }) },
  { name: 'aio without native calls', unit: 1, runs: 15, open: file({ native: false }) },
  { name: 'aio with O_DIRECT', unit: 4096, runs: 15, open: file({ direct: true }) },
  { name: 'a layer of each kind over ram', unit: 1, runs: 40, open: layers },
]

/** None of them changes what a disk is; each does its work all the same. */
async function layers(folder: string): Promise<BlockDevice> {
  const text = [
    'valve:all?bytes=1T&iops=1000000000',
    'cache:64K?page=4K',
    `log:${folder}/disk.log`,
    'fault:all?probability=0',
    `ram:${SIZE}`,
  ]
  return (await openPipeline(text.join('|'), DRIVERS, openContext())).device
}

for (const subject of subjects) {
  void t.test(`${subject.name} does what an array of bytes does`, async (t) => {
    const device = new Guard(await subject.open(t.testdir()), false)
    t.teardown(() => device.close())
    await checkAgainstModel(device, { size: SIZE, unit: subject.unit, runs: subject.runs })
  })
}
