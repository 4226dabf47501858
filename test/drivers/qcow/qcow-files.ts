/** QCOW images in memory, for tests that need no file. */

import assert from 'node:assert/strict'

import type { BlockDevice } from '../../../core/block-device.ts'
import { SILENT } from '../../../core/logger.ts'
import { KiB } from '../../../core/units.ts'
import { openQcow1 } from '../../../drivers/qcow/open-qcow1.ts'
import { openQcow2 } from '../../../drivers/qcow/open-qcow2.ts'
import { QcowDevice } from '../../../drivers/qcow/qcow-device.ts'
import { newImageBytes, type NewQcow2 } from '../../../formats/qcow/new-image.ts'
import { newQcow1Bytes } from '../../../formats/qcow/qcow1-header.ts'

/** What an image is unless a test says otherwise: small clusters, so that small disks have many. */
const USUAL: NewQcow2 = {
  version: 3,
  size: 128 * KiB,
  clusterSize: 4 * KiB,
  refcountBits: 16,
  extended: false,
  lazyRefcounts: false,
  compression: 'zlib',
  backing: undefined,
  dataFile: undefined,
}

export interface Variant extends Omit<Partial<NewQcow2>, 'version' | 'dataFile'> {
  readonly version?: 1 | 2 | 3
  /** The image has a data file, which is all of the disk. */
  readonly data?: 'guarded by the image' | 'raw'
}

export function newQcow(variant: Variant, overParent = false): Buffer {
  const { data, version = 3, ...rest } = variant
  const backing = overParent ? { named: 'parent', format: 'raw' } : undefined
  if (version === 1)
    return newQcow1Bytes({ size: rest.size ?? USUAL.size, backing: backing?.named })
  const dataFile = data === undefined ? undefined : { named: 'data', raw: data === 'raw' }
  return newImageBytes({ ...USUAL, ...rest, version, backing, dataFile })
}

export interface Around {
  readonly parent?: BlockDevice | undefined
  readonly dataFile?: BlockDevice | undefined
  readonly readOnly?: boolean
  readonly discard?: 'unmap' | 'ignore'
}

/** Opens an image with as few tables in memory as there can be. */
export async function openInMemory(file: BlockDevice, around: Around = {}): Promise<QcowDevice> {
  const { dataFile, discard = 'unmap', parent, readOnly = false } = around
  const start = Buffer.alloc(8)
  await file.read(start, 0)
  const common = { path: 'image', readOnly, logger: SILENT, cache: 0 }
  if (start.readUInt32BE(4) === 1)
    return new QcowDevice(
      await openQcow1(file, { ...common, openBacking: () => Promise.resolve(parent) }),
    )
  const image = await openQcow2(file, {
    ...common,
    unmap: discard === 'unmap',
    openBacking: () => Promise.resolve(parent),
    openDataFile: () => {
      assert.ok(dataFile !== undefined)
      return Promise.resolve(dataFile)
    },
  })
  return new QcowDevice(image)
}

export async function contentOf(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(device.geometry.size, 0xee)
  await device.read(content, 0)
  return content
}
