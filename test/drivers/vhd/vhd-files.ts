/** VHD images in memory for tests, made by colotap itself. */

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

import type { BlockDevice } from '../../../core/block-device.ts'
import { createVhd } from '../../../drivers/vhd/create-vhd.ts'
import { deviceOver, type VhdDevice } from '../../../drivers/vhd/open-vhd.ts'
import { readStructures } from '../../../drivers/vhd/vhd-structures.ts'
import type { RecordedFile } from '../../support/power-failures.ts'

/** The bytes of a new image. A `parent` is a file in `folder`. */
export async function newVhd(
  folder: string,
  size: number,
  settings: Readonly<Record<string, string>>,
  parent?: { readonly named: string; readonly format: string },
): Promise<Buffer> {
  const path = join(folder, `${Math.random().toString(36).slice(2)}.vhd`)
  await createVhd(path, { size, settings: new Map(Object.entries(settings)), backing: parent })
  return readFile(path)
}

export async function openInMemory(file: RecordedFile, parent?: BlockDevice): Promise<VhdDevice> {
  return deviceOver(file, 'memory', await readStructures(file, 'memory'), parent)
}
