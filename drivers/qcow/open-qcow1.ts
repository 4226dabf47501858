/**
 * Opens a QCOW 1 image that is given as a device. There are no refcounts: clusters are added at the end of the file, and
 * what is no longer used stays there.
 */

import { assert } from '../../core/assert.ts'
import type { BlockDevice } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import { then, type MaybePromise } from '../../core/maybe-promise.ts'
import { roundDown, roundUp } from '../../formats/qcow/layout.ts'
import { Qcow1Format } from '../../formats/qcow/qcow1-format.ts'
import { parseQcow1Header, QCOW1_START, type Qcow1Header } from '../../formats/qcow/qcow1-header.ts'
import type { Run } from './allocator.ts'
import { withPath } from './corruption.ts'
import { HostFile } from './host-file.ts'
import { InFlight } from './in-flight.ts'
import { MappingTables } from './mapping-tables.ts'
import { Metadata } from './metadata.ts'
import { MetadataPlaces } from './metadata-places.ts'
import { MOST_PLACES } from './open-tables.ts'
import type { ClusterSource, QcowImage } from './qcow-image.ts'
import { Serial } from './serial.ts'

export interface Qcow1Options {
  readonly path: string
  readonly readOnly: boolean
  readonly logger: Logger
  /** Bytes of tables in memory. */
  readonly cache: number
  /** The backing image of that name; undefined where it is left closed. */
  readonly openBacking: (name: string) => Promise<BlockDevice | undefined>
}

/** Gives out what is behind the end of everything. */
class EndOfFile implements ClusterSource {
  readonly #file: HostFile
  readonly #clusterSize: number
  #end: number

  constructor(file: HostFile, clusterSize: number) {
    this.#file = file
    this.#clusterSize = clusterSize
    this.#end = roundUp(file.size, clusterSize)
  }

  allocate(count: number): MaybePromise<Run> {
    const at = this.#end
    this.#end += count * this.#clusterSize
    return then(this.#file.ensure(this.#end), () => ({ at, clusters: count, zeroed: true }))
  }
}

/** Takes over `file`: closing the image closes it. On failure it stays the caller's. */
export async function openQcow1(file: BlockDevice, options: Qcow1Options): Promise<QcowImage> {
  const { cache, logger, path, readOnly } = options
  if (!readOnly && !file.can.resize) {
    throw new Fault('NOT_SUPPORTED', 'a version 1 image on a block device is only read', {
      where: path,
      remedy: 'serve it with --read-only, or convert it: qemu-img convert -O qcow2',
    })
  }
  const header = await readQcow1Header(file, path)
  const host = new HostFile(file, path)
  const format = new Qcow1Format(header)
  const l1 = await readQcow1Table(host, header, format)
  const places = placesOf(header, format, l1, path)
  const { clusterSize, l2Bytes } = format.layout
  const allocator = readOnly ? undefined : new EndOfFile(host, clusterSize)
  const tableClusters = Math.ceil(l2Bytes / clusterSize)
  const mapping = new MappingTables({
    file: host,
    guestFileSize: () => host.size,
    format,
    l1,
    l1At: header.l1At,
    places,
    allocate:
      allocator === undefined
        ? undefined
        : () => then(allocator.allocate(tableClusters), ({ at }) => at),
    limit: Math.max(8, Math.floor(cache / l2Bytes)),
    relieve: () => metadata?.commit() ?? Promise.resolve(),
    onUnused: () => assert(false, 'version 1 shares no tables'),
  })
  const inFlight = new InFlight()
  const metadata: Metadata | undefined = readOnly
    ? undefined
    : new Metadata(mapping, undefined, clusterSize, {
        file: host,
        order: new Serial(),
        inFlight,
        logger,
        flushData: () => undefined,
      })
  const { backingFile } = header
  const backing = backingFile === undefined ? undefined : await options.openBacking(backingFile)
  return {
    path,
    file: host,
    data: host,
    compression: 'zlib',
    qcow2: undefined,
    allocator,
    format,
    places,
    mapping,
    metadata,
    backing,
    inFlight,
    logger,
    rawData: false,
    unmap: false,
    size: header.size,
    broken: undefined,
  }
}

export async function readQcow1Header(file: BlockDevice, path: string): Promise<Qcow1Header> {
  const start = Buffer.alloc(Math.min(file.geometry.size, QCOW1_START))
  await file.read(start, 0)
  try {
    return parseQcow1Header(start, file.geometry.size)
  } catch (error) {
    throw withPath(path, error)
  }
}

export async function readQcow1Table(
  file: HostFile,
  { l1At, l1Entries }: Qcow1Header,
  format: Qcow1Format,
): Promise<Buffer> {
  const l1 = Buffer.alloc(l1Entries * 8)
  await file.read(l1, l1At)
  const { clusterSize, l2Bytes } = format.layout
  for (let index = 0; index < l1Entries; index += 1) {
    const at = format.tableAt(l1, index)
    if (at === 0) continue
    const reason =
      at % clusterSize !== 0
        ? 'the L2 table begins at no cluster boundary'
        : at + l2Bytes > roundUp(file.size, clusterSize)
          ? 'the L2 table is beyond the end of the file'
          : undefined
    if (reason !== undefined)
      throw withPath(file.path, new Fault('INVALID', `L1 entry ${index}: ${reason}`))
  }
  return l1
}

function placesOf(
  { l1At, l1Entries }: Qcow1Header,
  format: Qcow1Format,
  l1: Buffer,
  path: string,
): MetadataPlaces {
  const { clusterSize, l2Bytes } = format.layout
  const found: number[] = []
  const add = (from: number, to: number): void => {
    for (let at = roundDown(from, clusterSize); at < to; at += clusterSize) found.push(at)
  }
  // The header lies before the L1 table, in the same cluster as a rule.
  add(0, l1At + l1Entries * 8)
  for (let index = 0; index < l1Entries; index += 1) {
    const at = format.tableAt(l1, index)
    if (at !== 0) add(at, at + l2Bytes)
    if (found.length > MOST_PLACES)
      throw withPath(path, new Fault('INVALID', 'the tables of this image are absurdly large'))
  }
  const places = new MetadataPlaces(clusterSize, Float64Array.from(found))
  const twice = places.duplicate()
  if (twice !== undefined) throw withPath(path, new Fault('INVALID', `two tables lie at ${twice}`))
  return places
}
