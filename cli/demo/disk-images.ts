/** The demo's images: the same disk in whatever format each host keeps it. */

import { createReadStream } from 'node:fs'

import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { MiB } from '../../core/units.ts'
import { Guard } from '../../drivers/guard.ts'
import type { ImageFormat } from '../../drivers/image-format.ts'
import { IMAGE_FORMATS, imageFormat } from '../../drivers/image-formats.ts'
import { UsageError } from '../command-line.ts'

/** What each of the two hosts keeps its disks in. */
export interface HostFormats {
  readonly primary: ImageFormat
  readonly secondary: ImageFormat
}

/** `qcow`, for both hosts, or `qcow,vhd`, the primary's first; raw files unless given. @throws UsageError */
export function hostFormats(text = 'aio'): HostFormats {
  const [ours = '', theirs = ours, more] = text.split(',')
  const [primary, secondary] = [imageFormat(ours), imageFormat(theirs)]
  if (primary === undefined || secondary === undefined || more !== undefined) {
    const known = IMAGE_FORMATS.map(({ name }) => name).join(', ')
    throw new UsageError(`--format ${text} is not known: give one or two of ${known}`)
  }
  return { primary, secondary }
}

/** Makes an image of `size` bytes, with the content of a raw file where one is given. */
export async function makeImage(
  format: ImageFormat,
  path: string,
  size: number,
  content?: string,
): Promise<void> {
  await format.create(path, { size, settings: new Map(), backing: undefined }, () => undefined)
  if (content === undefined) return
  const use = { readOnly: false, logger: SILENT, parents: [] }
  const image = new Guard(await format.open(path, use), false)
  try {
    let at = 0
    for await (const piece of createReadStream(content, { highWaterMark: 1 * MiB })) {
      const bytes = piece as Buffer
      if (bytes.some((byte) => byte !== 0)) await image.write(bytes, at, 0)
      at += bytes.length
    }
    await image.flush()
  } finally {
    await image.close()
  }
}

/** The disk in an image that nobody uses. @throws Fault where its structures are not sound */
export async function readImage(format: ImageFormat, path: string): Promise<Buffer> {
  const { errors } = await format.check(path, 'none', () => undefined)
  if (errors[0] !== undefined) throw new Fault('IO', errors[0], { where: path })
  const image = await format.open(path, { readOnly: true, logger: SILENT, parents: [] })
  try {
    const disk = Buffer.alloc(image.geometry.size)
    for (let at = 0; at < disk.length; at += MiB)
      await image.read(disk.subarray(at, Math.min(at + MiB, disk.length)), at)
    return disk
  } finally {
    await image.close()
  }
}

/** In words. */
export function formatsLine({ primary, secondary }: HostFormats): string {
  return primary === secondary
    ? `${primary.name} images on both hosts`
    : `${primary.name} images on the primary, ${secondary.name} images on the secondary`
}
