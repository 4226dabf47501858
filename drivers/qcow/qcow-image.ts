/** One open QCOW image: what its reader, its writer and its tools share. */

import type { BlockDevice } from '../../core/block-device.ts'
import type { Fault } from '../../core/fault.ts'
import type { Logger } from '../../core/logger.ts'
import { CORRUPT, type Qcow2Header } from '../../formats/qcow/header.ts'
import type { MaybePromise } from '../../core/maybe-promise.ts'
import type { EntryFormat } from '../../formats/qcow/entry-format.ts'
import type { Allocator, Run } from './allocator.ts'
import { corruption } from './corruption.ts'
import type { HeaderSector } from './header-sector.ts'
import type { HostFile } from './host-file.ts'
import type { InFlight } from './in-flight.ts'
import type { MetadataPlaces } from './metadata-places.ts'
import type { MappingTables } from './mapping-tables.ts'
import type { Metadata } from './metadata.ts'

/** Gives out host clusters, at most `count` behind each other. */
export interface ClusterSource {
  allocate(count: number): MaybePromise<Run>
}

/** What only an image of version 2 or 3 has. */
export interface Qcow2Parts {
  readonly header: Qcow2Header
  readonly headerSector: HeaderSector
  /** There when the image is open for writing. */
  readonly allocator: Allocator
  /** As the header has it; changes with a resize. */
  l1Entries: number
}

export interface QcowImage {
  readonly path: string
  readonly file: HostFile
  /** The file that holds guest clusters: the image itself, or a file of their own. */
  readonly data: HostFile
  readonly compression: 'zlib' | 'zstd'
  /** What versions 2 and 3 have. */
  readonly qcow2: Qcow2Parts | undefined
  readonly format: EntryFormat
  readonly places: MetadataPlaces
  readonly mapping: MappingTables
  /** There when the image is open for writing. */
  readonly metadata: Metadata | undefined
  readonly backing: BlockDevice | undefined
  readonly inFlight: InFlight
  readonly logger: Logger
  /** The data file must read as the disk does, without the image. */
  readonly rawData: boolean
  /** Whether trimmed and zeroed space is given back. */
  readonly unmap: boolean
  /** Gives out clusters; there when the image is open for writing. */
  readonly allocator: ClusterSource | undefined
  /** Bytes of the disk; changes with a resize. */
  size: number
  /** The image contradicts itself: nothing more is written to it. */
  broken: Fault | undefined
}

/** Bytes from `at` on that the backing image has, of `length`. */
export function backedBytes({ backing }: QcowImage, at: number, length: number): number {
  if (backing === undefined) return 0
  return Math.max(0, Math.min(length, backing.geometry.size - at))
}

/** Ends all writing to an image that turned out to contradict itself, and says so in the image. */
export function breakDown(image: QcowImage, what: string): Fault {
  if (image.broken !== undefined) return image.broken
  image.broken = corruption(image.path, what)
  const { logger, metadata, path, qcow2 } = image
  logger.error({ err: image.broken, path }, 'the image is corrupt; nothing more is written to it')
  if (metadata === undefined || qcow2 === undefined || qcow2.header.version === 2)
    return image.broken
  const { header, headerSector } = qcow2
  metadata
    .inOrder(() => headerSector.write({ incompatible: header.incompatible | CORRUPT }))
    .catch((error: unknown) => {
      logger.error({ err: error, path }, 'cannot mark the image as corrupt')
    })
  return image.broken
}
