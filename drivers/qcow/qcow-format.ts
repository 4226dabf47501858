/** QCOW as an image format: what `colotap image` does with it. */

import { stat } from 'node:fs/promises'

import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { SECTOR } from '../../core/units.ts'
import { EXTENSION } from '../../formats/qcow/header-extensions.ts'
import {
  BITMAPS,
  CORRUPT,
  DIRTY,
  LAZY_REFCOUNTS,
  RAW_DATA_FILE,
  type Qcow2Header,
} from '../../formats/qcow/header.ts'
import { openImageFile } from '../aio/aio.ts'
import { unlockedLook } from '../aio/unlocked-look.ts'
import { BackingChain } from '../backing-chain.ts'
import type {
  BackingPlace,
  BackingReference,
  ImageDescription,
  ImageFormat,
} from '../image-format.ts'
import { checkQcow } from './check-qcow.ts'
import { createQcow, QCOW_CREATION } from './create-qcow.ts'
import { HostFile } from './host-file.ts'
import {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
} from './internal-snapshots.ts'
import { readQcow1Header } from './open-qcow1.ts'
import { openQcow } from './open-qcow.ts'
import { readHeader } from './open-qcow2.ts'
import { readSurveyed } from './open-tables.ts'
import { versionOf } from './version.ts'

export const qcowFormat: ImageFormat = {
  name: 'qcow',
  aliases: ['qcow2', 'qcow'],
  creation: QCOW_CREATION,
  open: openQcow,
  create: createQcow,
  describe,
  check: checkQcow,
  internalSnapshots: {
    list: (path) => unlockedLook(path, (file) => listSnapshots(file, path)),
    create: (path, name, progress) =>
      changing(path, (file) => createSnapshot(file, path, name, Date.now(), progress)),
    apply: (path, name, progress) =>
      changing(path, (file) => applySnapshot(file, path, name, progress)),
    delete: (path, name, progress) =>
      changing(path, (file) => deleteSnapshot(file, path, name, progress)),
  },
}

/** Runs `work` on the file of an image that nobody else uses. */
async function changing(path: string, work: (file: BlockDevice) => Promise<void>): Promise<void> {
  const file = await openImageFile(path, { readOnly: false, logger: SILENT, threads: 1 })
  try {
    await work(file)
  } finally {
    await file.close()
  }
}

async function describe(path: string, parents: readonly string[]): Promise<ImageDescription> {
  const { blocks } = await stat(path)
  return unlockedLook(path, async (file) => {
    const common = {
      path,
      format: 'qcow',
      fileSize: file.geometry.size,
      allocated: blocks * SECTOR,
    }
    if ((await versionOf(file)) === 1) {
      const { backingFile, clusterSize, size } = await readQcow1Header(file, path)
      const reference =
        backingFile === undefined ? undefined : { named: backingFile, format: undefined }
      const backing = await placeOf(reference, path, parents)
      return { ...common, size, backing, details: { version: 1, 'cluster size': clusterSize } }
    }
    const { header } = await readHeader(file, path)
    const { snapshots } = await readSurveyed(new HostFile(file, path), header)
    return {
      ...common,
      size: header.size,
      backing: await placeOf(backingOf(header), path, parents),
      details: detailsOf(header, snapshots),
    }
  })
}

/** What colotap calls the formats that images name. */
const FORMAT_NAMES: Readonly<Record<string, string>> = {
  raw: 'aio',
  qcow2: 'qcow',
  vpc: 'vhd',
}

function backingOf({ backingFile, backingFormat }: Qcow2Header): BackingReference | undefined {
  if (backingFile === undefined) return undefined
  const format =
    backingFormat === undefined ? undefined : (FORMAT_NAMES[backingFormat] ?? backingFormat)
  return { named: backingFile, format }
}

/** Where the backing image is, if it is where backing images may be. */
async function placeOf(
  reference: BackingReference | undefined,
  image: string,
  parents: readonly string[],
): Promise<BackingPlace | undefined> {
  if (reference === undefined) return undefined
  try {
    const chain = await BackingChain.from(image, parents)
    return { ...reference, path: (await chain.parent(reference.named)).path }
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    return { ...reference, path: undefined }
  }
}

function detailsOf(
  header: Qcow2Header,
  snapshots: readonly { readonly name: string }[],
): ImageDescription['details'] {
  const { autoclear, compatible, dataFile, incompatible, layout } = header
  const has = (bits: bigint, bit: bigint): boolean => (bits & bit) !== 0n
  return {
    version: header.version,
    'cluster size': layout.clusterSize,
    'refcount bits': layout.refcountBits,
    'extended L2 entries': layout.extended,
    compression: header.compression,
    'lazy refcounts': has(compatible, LAZY_REFCOUNTS),
    'closed in order': !has(incompatible, DIRTY),
    corrupt: has(incompatible, CORRUPT),
    snapshots: snapshots.length,
    ...(snapshots.length === 0
      ? {}
      : { 'snapshot names': snapshots.map(({ name }) => name).join(', ') }),
    ...(header.extensions.some(({ type }) => type === EXTENSION.bitmaps)
      ? { 'bitmaps are valid': has(autoclear, BITMAPS) }
      : {}),
    ...(dataFile === undefined
      ? {}
      : { 'data file': dataFile, 'raw data file': has(autoclear, RAW_DATA_FILE) }),
  }
}
