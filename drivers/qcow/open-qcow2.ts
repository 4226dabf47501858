/**
 * Opens a QCOW2 image that is given as a device: nothing is written, and when it fails nothing that was opened here
 * stays open.
 */

import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { then } from '../../core/maybe-promise.ts'
import type { Logger } from '../../core/logger.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import {
  clusterSizeOf,
  CORRUPT,
  DIRTY,
  parseHeader,
  RAW_DATA_FILE,
  type Qcow2Header,
} from '../../formats/qcow/header.ts'
import { L2Format } from '../../formats/qcow/l2-table.ts'
import { Allocator } from './allocator.ts'
import { withPath } from './corruption.ts'
import { HeaderSector } from './header-sector.ts'
import { HostFile } from './host-file.ts'
import { InFlight } from './in-flight.ts'
import { MappingTables } from './mapping-tables.ts'
import { Metadata } from './metadata.ts'
import { readTables, type OpenTables } from './open-tables.ts'
import { breakDown, type QcowImage } from './qcow-image.ts'
import { RefcountBlocks } from './refcount-blocks.ts'
import { Serial } from './serial.ts'

export const USUAL_CACHE = 32 * MiB

export interface Qcow2Options {
  readonly path: string
  readonly readOnly: boolean
  readonly logger: Logger
  /** Whether trimmed and zeroed space is given back. */
  readonly unmap: boolean
  /** Bytes of tables in memory. */
  readonly cache: number
  /** The backing image, for its name and format in the header; undefined where it is left closed. */
  readonly openBacking: (header: Qcow2Header) => Promise<BlockDevice | undefined>
  readonly openDataFile: (name: string) => Promise<BlockDevice>
}

/** The header of the image, and the sector that it begins in. */
export async function readHeader(
  file: BlockDevice,
  path: string,
): Promise<{ readonly header: Qcow2Header; readonly start: Buffer }> {
  const { size } = file.geometry
  const start = Buffer.alloc(Math.min(size, SECTOR))
  await file.read(start, 0)
  try {
    const cluster = Buffer.alloc(Math.min(size, clusterSizeOf(start)))
    await file.read(cluster, 0)
    return { header: parseHeader(cluster, size), start }
  } catch (error) {
    throw withPath(path, error)
  }
}

/** Takes over `file`: closing the image closes it. On failure it stays the caller's. */
export async function openQcow2(file: BlockDevice, options: Qcow2Options): Promise<QcowImage> {
  const { path, readOnly } = options
  const { header, start } = await readHeader(file, path)
  if (!readOnly) refuseUnfit(header, path)
  const host = new HostFile(file, path)
  let tables: OpenTables
  try {
    tables = await readTables(host, header)
  } catch (error) {
    throw withPath(path, error)
  }
  let dataDevice: BlockDevice | undefined
  try {
    if (header.dataFile !== undefined) dataDevice = await options.openDataFile(header.dataFile)
    const backing = await options.openBacking(header)
    const data = dataDevice === undefined ? host : new HostFile(dataDevice, path)
    return assemble({ host, data, backing, header, start, tables, options })
  } catch (error) {
    await dataDevice?.close()
    throw error
  }
}

/** Whether refcounts may be out of date, but nothing else is known to be wrong. */
export function isUnclosed({ incompatible }: Qcow2Header): boolean {
  return (incompatible & (DIRTY | CORRUPT)) === DIRTY
}

/** What keeps an image from being changed, though it may be read. */
function refuseUnfit({ incompatible }: Qcow2Header, path: string): void {
  const remedy = 'check it: colotap image check --repair all; or open it read-only'
  if ((incompatible & CORRUPT) !== 0n)
    throw new Fault('NOT_PERMITTED', 'the image is marked as corrupt', { where: path, remedy })
  if ((incompatible & DIRTY) !== 0n)
    throw new Fault('NOT_PERMITTED', 'the refcounts of the image are marked as out of date', {
      where: path,
      remedy,
    })
}

interface Parts {
  readonly host: HostFile
  readonly data: HostFile
  readonly backing: BlockDevice | undefined
  readonly header: Qcow2Header
  readonly start: Buffer
  readonly tables: OpenTables
  readonly options: Qcow2Options
}

function assemble({ host, data, backing, header, start, tables, options }: Parts): QcowImage {
  const { layout } = header
  const { places, refcountTable } = tables
  const { logger, path, readOnly, unmap } = options
  const headerSector = new HeaderSector(host, start)
  const format = new L2Format({
    layout,
    version: header.version,
    dataFile: header.dataFile !== undefined,
  })
  const order = new Serial()
  const inFlight = new InFlight()
  const tablesInMemory = Math.max(8, Math.floor(options.cache / layout.clusterSize))
  const blocks = new RefcountBlocks({
    file: host,
    layout,
    places,
    table: refcountTable,
    tableAt: header.refcountTableAt,
    limit: Math.max(8, Math.floor(tablesInMemory / 4)),
  })
  const onUnused = (at: number, clusters: number): void => metadata?.unused(at, clusters)
  const allocator = new Allocator({
    blocks,
    places,
    header: headerSector,
    order,
    punch: unmap,
    corrupt: (what) => breakDown(image, what),
    onUnused,
  })
  const mapping = new MappingTables({
    file: host,
    guestFileSize: () => data.size,
    format,
    l1: tables.l1,
    l1At: header.l1At,
    places,
    allocate: readOnly ? undefined : () => then(allocator.allocate(1), ({ at: place }) => place),
    limit: tablesInMemory,
    relieve: () => metadata?.commit() ?? Promise.resolve(),
    onUnused,
  })
  const metadata: Metadata | undefined = readOnly
    ? undefined
    : new Metadata(mapping, { blocks, allocator }, layout.clusterSize, {
        file: host,
        order,
        inFlight,
        logger,
        flushData: () => (data === host ? undefined : data.flush()),
      })
  const image: QcowImage = {
    path,
    file: host,
    data,
    compression: header.compression,
    qcow2: { header, headerSector, allocator, l1Entries: header.l1Entries },
    allocator: readOnly ? undefined : allocator,
    format,
    places,
    mapping,
    metadata,
    backing,
    inFlight,
    logger,
    rawData: (header.autoclear & RAW_DATA_FILE) !== 0n,
    unmap,
    size: header.size,
    broken: undefined,
  }
  return image
}
