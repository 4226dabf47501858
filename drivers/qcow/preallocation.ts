/** What of a new image is there from the start. */

import { assert } from '../../core/assert.ts'
import { NO_HOLE } from '../../core/block-device.ts'
import { SILENT } from '../../core/logger.ts'
import { MiB } from '../../core/units.ts'
import type { Progress } from '../image-format.ts'
import { openQcow2File } from './open-qcow.ts'
import type { QcowImage } from './qcow-image.ts'
import { QcowDevice } from './qcow-device.ts'

/** As qemu-img calls them: only the tables; also space for every cluster; also every zero written. */
export const PREALLOCATIONS = ['off', 'metadata', 'falloc', 'full'] as const

const ZEROES = Buffer.alloc(1 * MiB)

/** Maps every cluster of an image in which nothing is mapped, to clusters that hold zeroes. */
export async function preallocate(
  path: string,
  how: 'metadata' | 'falloc' | 'full',
  progress: Progress,
): Promise<void> {
  const image = await openQcow2File(path, { readOnly: false, logger: SILENT, parents: ['/'] })
  const device = new QcowDevice(image)
  try {
    await device.prepare()
    await mapAll(image, how, progress)
  } finally {
    await device.close()
  }
}

async function mapAll(
  image: QcowImage,
  how: 'metadata' | 'falloc' | 'full',
  progress: Progress,
): Promise<void> {
  const { clusterSize, l2Span } = image.format.layout
  for (let at = 0; at < image.size;) {
    const end = Math.min(at + l2Span - (at % l2Span), image.size)
    const clusters = Math.ceil((end - at) / clusterSize)
    at += await mapSome(image, at, clusters, how)
    progress(Math.min(at, image.size), image.size)
  }
}

/** Maps up to `clusters` clusters from guest offset `at` on; gives the bytes that they are. */
async function mapSome(
  image: QcowImage,
  at: number,
  clusters: number,
  how: 'metadata' | 'falloc' | 'full',
): Promise<number> {
  const { allocator, data, format, mapping } = image
  const { clusterSize, l2Span } = format.layout
  assert(allocator !== undefined, 'the image is open for writing')
  const index = Math.floor(at / l2Span)
  await mapping.own(index)
  const run = format.dataFile ? { at, clusters, zeroed: true } : await allocator.allocate(clusters)
  const length = run.clusters * clusterSize
  if (format.dataFile) await data.ensure(run.at + length)
  if (how !== 'metadata' || !run.zeroed) await fill(image, run.at, length, how)
  let table = mapping.owned(index)
  while (table === undefined) {
    await mapping.own(index)
    table = mapping.owned(index)
  }
  const first = (at % l2Span) / clusterSize
  for (let each = 0; each < run.clusters; each += 1)
    format.put(table.bytes, first + each, run.at + each * clusterSize, format.all, 0)
  mapping.soil(table, first, first + run.clusters - 1)
  return length
}

async function fill(
  { data }: QcowImage,
  at: number,
  length: number,
  how: 'metadata' | 'falloc' | 'full',
): Promise<void> {
  if (how !== 'full') {
    await data.device.zero(at, length, NO_HOLE)
    return
  }
  for (let done = 0; done < length; done += ZEROES.length) {
    const part = ZEROES.subarray(0, Math.min(ZEROES.length, length - done))
    await data.write(part, at + done)
  }
}
