/**
 * Makes QCOW images.
 *
 * Invariant: a file that is there already is never touched; a file that could not be completed is removed.
 */

import { constants } from 'node:fs'
import { open, rm, stat, type FileHandle } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'

import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { KiB, MiB } from '../../core/units.ts'
import { newImageBytes, newImageObjection, type NewQcow2 } from '../../formats/qcow/new-image.ts'
import { newQcow1Bytes } from '../../formats/qcow/qcow1-header.ts'
import {
  booleanSetting,
  choiceSetting,
  sizeSetting,
  type SettingDescription,
  type Stage,
} from '../driver.ts'
import { unlockedLook } from '../aio/unlocked-look.ts'
import type { NewImage, Progress } from '../image-format.ts'
import { openQcow } from './open-qcow.ts'
import { PREALLOCATIONS, preallocate } from './preallocation.ts'
import { versionOf } from './version.ts'

export const QCOW_CREATION: Readonly<Record<string, SettingDescription>> = {
  version: { meaning: 'version of the format; 3 unless given', values: '1|2|3' },
  cluster_size: {
    meaning: 'bytes of a cluster; 64K unless given, 4K in version 1',
    values: '512-2M, a power of two',
  },
  refcount_bits: { meaning: 'width of a refcount; 16 unless given', values: '1|2|4|8|16|32|64' },
  extended_l2: {
    meaning: 'allocate by 32nds of a cluster; for clusters of 16K and more',
    values: 'on|off',
  },
  lazy_refcounts: { meaning: 'let qemu postpone refcounts; colotap never does', values: 'on|off' },
  compression_type: { meaning: 'how qemu compresses clusters', values: 'zlib|zstd' },
  preallocation: {
    meaning:
      'what is there from the start: nothing, the tables, space, or zeroes that were written',
    values: PREALLOCATIONS.join('|'),
  },
  data_file: { meaning: 'a file of its own for the data, made as well', values: 'a path' },
  data_file_raw: {
    meaning: 'the data file can be read without the image, as a raw one',
    values: 'on|off',
  },
}

export async function createQcow(path: string, image: NewImage, progress: Progress): Promise<void> {
  const stage: Stage = { driver: 'qcow', target: path, settings: image.settings }
  const backing = await backingOf(path, image)
  if (choiceSetting(stage, 'version', ['1', '2', '3'], '3') === '1') {
    refuseSettings(stage, ['version'])
    await makeFile(path, newQcow1Bytes({ size: image.size, backing: backing?.named }))
    return
  }
  const wanted = qcow2Of(stage, image.size, backing)
  const reason = newImageObjection(wanted)
  if (reason !== undefined) throw new Fault('INVALID', reason, { where: path })
  const preallocation = choiceSetting(stage, 'preallocation', PREALLOCATIONS, 'off')
  if (preallocation !== 'off' && backing !== undefined) {
    throw new Fault('INVALID', 'what is allocated from the start hides the backing image', {
      where: path,
      remedy: 'leave preallocation off',
    })
  }
  const bytes = newImageBytes(wanted)
  const data = wanted.dataFile
  const dataPath = data?.named
  if (dataPath !== undefined) await makeFile(dataPath, Buffer.alloc(0), image.size)
  try {
    await makeFile(path, bytes)
  } catch (error) {
    if (dataPath !== undefined) await rm(dataPath, { force: true })
    throw error
  }
  const effective = data?.raw === true && preallocation === 'off' ? 'metadata' : preallocation
  if (effective === 'off') return
  try {
    await preallocate(path, effective, progress)
  } catch (error) {
    await rm(path, { force: true })
    if (dataPath !== undefined) await rm(dataPath, { force: true })
    throw error
  }
}

function qcow2Of(stage: Stage, size: number, backing: NewQcow2['backing']): NewQcow2 {
  const dataFile = stage.settings.get('data_file')
  const raw = booleanSetting(stage, 'data_file_raw', false)
  if (raw && dataFile === undefined)
    throw new Fault('INVALID', 'data_file_raw=on needs data_file', { where: stage.target })
  return {
    version: choiceSetting(stage, 'version', ['2', '3'], '3') === '2' ? 2 : 3,
    size,
    clusterSize: sizeSetting(stage, 'cluster_size', { least: 512, most: 2 * MiB }, 64 * KiB),
    refcountBits: Number(
      choiceSetting(stage, 'refcount_bits', ['1', '2', '4', '8', '16', '32', '64'], '16'),
    ),
    extended: booleanSetting(stage, 'extended_l2', false),
    lazyRefcounts: booleanSetting(stage, 'lazy_refcounts', false),
    compression: choiceSetting(stage, 'compression_type', ['zlib', 'zstd'], 'zlib'),
    backing,
    // QEMU takes a relative name for one in its own working directory.
    dataFile:
      dataFile === undefined ? undefined : { named: resolve(dirname(stage.target), dataFile), raw },
  }
}

function refuseSettings(stage: Stage, allowed: readonly string[]): void {
  for (const key of stage.settings.keys()) {
    if (allowed.includes(key)) continue
    throw new Fault('INVALID', `version 1 has no ${key}`, {
      where: stage.target,
      remedy: 'leave it out, or choose version=3',
    })
  }
}

/** The names that other programs use in images for the formats that colotap has. */
const FORMAT_NAMES: Readonly<Record<string, string>> = { aio: 'raw', vhd: 'vpc' }

/** The backing image as it will be recorded; it must be there, and of the format that is said. */
async function backingOf(path: string, { backing }: NewImage): Promise<NewQcow2['backing']> {
  if (backing === undefined) return undefined
  const absolute = resolve(dirname(path), backing.named)
  await stat(absolute).catch((cause: unknown) => {
    throw new Fault('NOT_FOUND', 'the backing image cannot be found', { where: absolute, cause })
  })
  const { format = 'qcow' } = backing
  if (format !== 'qcow') return { named: backing.named, format: FORMAT_NAMES[format] ?? format }
  return { named: backing.named, format: await qcowName(absolute) }
}

/** What qemu calls the version of a QCOW image. */
async function qcowName(path: string): Promise<string> {
  try {
    // With all folders allowed: it is the operator who names it here, not the image.
    const use = { readOnly: true, logger: SILENT, parents: ['/'], alone: true }
    await (await openQcow(path, use)).close()
  } catch (error) {
    // What is served could be opened.
    if (!(error instanceof Fault) || error.code !== 'IN_USE') throw error
  }
  return unlockedLook(path, async (file) => ((await versionOf(file)) === 1 ? 'qcow' : 'qcow2'))
}

/** Makes a file with these bytes at its beginning; `size` bytes long where that is more. */
async function makeFile(path: string, bytes: Buffer, size = 0): Promise<void> {
  const handle = await createFile(path)
  try {
    for (let done = 0; done < bytes.length;) {
      const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, done)
      done += bytesWritten
    }
    if (size > bytes.length) await handle.truncate(size)
    await handle.sync()
    await handle.close()
  } catch (cause) {
    await handle.close().catch(() => undefined)
    await rm(path, { force: true })
    throw new Fault('IO', 'the image could not be written', { where: path, cause })
  }
}

async function createFile(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600)
  } catch (cause) {
    const { code = 'error' } = cause as NodeJS.ErrnoException
    if (code === 'EEXIST') {
      throw new Fault('IN_USE', 'there is a file of that name already', {
        where: path,
        remedy: 'choose another name, or remove it first',
      })
    }
    throw new Fault('IO', `the image cannot be created (${code})`, { where: path, cause })
  }
}
