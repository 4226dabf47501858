/** Images of every format for pairs whose two sides need not have the same one; what is in them is read by QEMU. */

import { readFile, rm, writeFile } from 'node:fs/promises'
import { imageFormat } from '../../drivers/image-formats.ts'
import { below, type Random } from '../../core/seeded-random.ts'
import { mustRun } from './child.ts'
import { createEmptyImage } from './images.ts'
import { inspectQcow2 } from './qcow-inspector.ts'
import type { Scope } from './scope.ts'
import { inspectVhd } from './vhd-inspector.ts'

const REPLICA_FORMATS = ['aio', 'qcow', 'vhd'] as const
export type ReplicaFormat = (typeof REPLICA_FORMATS)[number]

/** The formats of both sides. */
export interface PairFormats {
  readonly primary: ReplicaFormat
  readonly secondary: ReplicaFormat
}

/** Raw files in half of the cases, and every mixture in the others. */
export function anyFormats(random: Random): PairFormats {
  if (random() < 0.5) return { primary: 'aio', secondary: 'aio' }
  const any = (): ReplicaFormat => REPLICA_FORMATS[below(random, REPLICA_FORMATS.length)]!
  return { primary: any(), secondary: any() }
}

const QEMU_NAMES = { aio: 'raw', qcow: 'qcow2', vhd: 'vpc' } as const

export async function createReplicaImage(
  scope: Scope,
  path: string,
  format: ReplicaFormat,
  size: number,
  content?: Buffer,
): Promise<void> {
  if (format === 'aio') {
    if (content === undefined) await createEmptyImage(path, size)
    else await writeFile(path, content)
    return
  }
  if (content === undefined) {
    const image = { size, settings: new Map<string, string>(), backing: undefined }
    await imageFormat(format)!.create(path, image, () => undefined)
    return
  }
  const raw = `${path}.raw`
  await writeFile(raw, content)
  const options = format === 'vhd' ? ['-o', 'force_size=on'] : []
  await mustRun(scope, 'qemu-img', [
    ...['convert', '-f', 'raw', '-O', QEMU_NAMES[format], ...options],
    ...[raw, path],
  ])
  await rm(raw)
}

/** The disk that an image holds that nobody has open, by QEMU. */
export async function imageContent(
  scope: Scope,
  path: string,
  format: ReplicaFormat,
): Promise<Buffer> {
  if (format === 'aio') return readFile(path)
  const raw = `${path}.raw`
  await mustRun(scope, 'qemu-img', [
    ...['convert', '-f', QEMU_NAMES[format], '-O', 'raw'],
    ...[path, raw],
  ])
  const content = await readFile(raw)
  await rm(raw)
  return content
}

/** What is wrong with the structures of an image that was closed in order. A crash before that may have left leaks. */
export async function imageObjection(
  path: string,
  format: ReplicaFormat,
): Promise<string | undefined> {
  if (format === 'aio') return undefined
  const bytes = await readFile(path)
  return format === 'vhd' ? inspectVhd(bytes, true) : inspectQcow2(bytes).errors[0]
}
