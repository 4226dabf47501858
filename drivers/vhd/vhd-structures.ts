/**
 * Reads the structures of a VHD from its file, and refuses what cannot be right before anything is made of it.
 *
 * Invariants:
 *  - Nothing is written here.
 *  - Memory is taken only for what has been checked against the size of the file: a table that the header claims and the
 *    file does not have is refused first.
 */

import { Fault } from '../../core/fault.ts'
import { SECTOR } from '../../core/units.ts'
import {
  batmapCoverage,
  batmapFits,
  hasBatmap,
  parseBatmapHeader,
  type BatmapHeader,
} from '../../formats/vhd/batmap.ts'
import { bitAt, setBit } from '../../formats/vhd/bits.ts'
import {
  blocksOf,
  DYNAMIC_HEADER,
  parseHeader,
  type DynamicHeader,
} from '../../formats/vhd/dynamic-header.ts'
import { DIFFERENCING, FIXED, parseFooter, type Footer } from '../../formats/vhd/footer.ts'
import {
  areasObjection,
  batmapHeaderOffset,
  metadataAreas,
  tableObjection,
  UNUSED,
  type Area,
} from '../../formats/vhd/layout.ts'
import { decodeLocator, decodeParentName, isReadable } from '../../formats/vhd/parent-names.ts'
import type { ImageFile } from '../aio/aio-device.ts'

export interface FixedStructures {
  readonly kind: 'fixed'
  readonly footer: Footer
  readonly footerAt: number
}

export interface SparseStructures {
  readonly kind: 'sparse'
  readonly footer: Footer
  readonly header: DynamicHeader
  readonly areas: readonly Area[]
  /** One entry for each block of the disk: the sector where it begins, or UNUSED. */
  readonly table: Uint32Array
  /** A bit for each block that the batmap calls complete; blocks that are not in the image have none. */
  readonly complete: Uint8Array
  /** Undefined where the creator makes none, and where there is none that can be believed. */
  readonly batmap: BatmapHeader | undefined
  /** The parent's names, for differencing images: the likeliest first. */
  readonly parentNames: readonly string[]
  /** What is not as it should be and does no harm, such as a lost footer of which there is a copy. */
  readonly flaws: readonly string[]
  /** Whether both footers are there and equal. */
  readonly footersAgree: boolean
}

export type VhdStructures = FixedStructures | SparseStructures

/** @param where the path, for faults. @throws Fault INVALID that says what is wrong */
export async function readStructures(file: ImageFile, where: string): Promise<VhdStructures> {
  try {
    return await read(file)
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'INVALID' || error.where !== undefined)
      throw error
    throw new Fault('INVALID', `this is no VHD that can be used: ${error.what}`, {
      where,
      remedy: 'name the driver that fits the image, or restore the image from a backup',
      cause: error,
    })
  }
}

async function read(file: ImageFile): Promise<VhdStructures> {
  const { size } = file.geometry
  const last = await lastFooter(file)
  const first =
    size < SECTOR ? 'the file is too short' : parseFooter(await bytesAt(file, 0, SECTOR))
  refuse(doubt(first, last))
  if (typeof last.footer !== 'string' && last.footer.type === FIXED) {
    const { currentSize } = last.footer
    if (currentSize > last.at)
      throw refused(`the file ends before the disk of ${currentSize} bytes does; it was cut off`)
    return { kind: 'fixed', footer: last.footer, footerAt: last.at }
  }
  const footer = typeof last.footer !== 'string' ? last.footer : first
  if (typeof footer === 'string')
    throw refused(typeof last.footer === 'string' ? last.footer : footer)
  if (footer.type === FIXED) throw refused('the footer at the end of this fixed disk is lost')
  const flaws: string[] = []
  if (typeof last.footer === 'string') flaws.push(`at the end: ${last.footer}`)
  if (typeof first === 'string') flaws.push(`at the beginning: ${first}`)
  const footersAgree = flaws.length === 0 && (await bytesAt(file, 0, SECTOR)).equals(last.bytes)
  if (flaws.length === 0 && !footersAgree) flaws.push('the two footers differ')
  return readSparse(file, footer, flaws, footersAgree)
}

async function readSparse(
  file: ImageFile,
  footer: Footer,
  flaws: string[],
  footersAgree: boolean,
): Promise<SparseStructures> {
  const { size } = file.geometry
  const headerAt = footer.dataOffset ?? 0
  if (headerAt + DYNAMIC_HEADER.size > size)
    throw refused('the dynamic header lies beyond the end of the file')
  const header = parseHeader(await bytesAt(file, headerAt, DYNAMIC_HEADER.size), footer)
  if (typeof header === 'string') throw refused(header)
  refuse(areasObjection(metadataAreas(footer, header, undefined), size))

  const table = await readTable(file, footer, header)
  const { batmap, complete } = await readBatmap(file, footer, header, table, flaws)
  const areas = metadataAreas(footer, header, batmap)
  refuse(areasObjection(areas, size))
  refuse(tableObjection(table, header.blockSize, areas, size))
  const parentNames = footer.type === DIFFERENCING ? await readParentNames(file, header) : []
  return {
    ...{ kind: 'sparse', footer, header, areas, table, complete, batmap },
    ...{ parentNames, flaws, footersAgree },
  }
}

/**
 * A guest writes the first sector of a fixed disk, and after an accident under another program's hands a sparse image may
 * end with what a guest has written: two footers of different disks leave it open which one is the image's own. Only a
 * fixed disk that fits its file to the byte is beyond doubt.
 */
function doubt(first: Footer | string, last: LastFooter): string | undefined {
  if (typeof first === 'string' || typeof last.footer === 'string') return undefined
  if (first.uuid.equals(last.footer.uuid) && first.type === last.footer.type) return undefined
  if (last.footer.type === FIXED && last.footer.currentSize === last.at) return undefined
  return 'the footers at its beginning and at its end are of different disks'
}

interface LastFooter {
  readonly footer: Footer | string
  readonly at: number
  readonly bytes: Buffer
}

/** Virtual PC before 2004 wrote footers of 511 bytes (the specification's "Hard Disk Footer Format"). */
async function lastFooter(file: ImageFile): Promise<LastFooter> {
  const { size } = file.geometry
  const at = size - (size % SECTOR === SECTOR - 1 ? SECTOR - 1 : SECTOR)
  if (at < 0) return { footer: 'the file is too short', at: 0, bytes: Buffer.alloc(SECTOR) }
  const bytes = Buffer.alloc(SECTOR)
  await file.read(bytes.subarray(0, size - at), at)
  return { footer: parseFooter(bytes), at, bytes }
}

async function readTable(
  file: ImageFile,
  footer: Footer,
  header: DynamicHeader,
): Promise<Uint32Array> {
  const blocks = blocksOf(footer.currentSize, header.blockSize)
  const bytes = await bytesAt(file, header.tableOffset, blocks * 4)
  bytes.swap32()
  return new Uint32Array(bytes.buffer, bytes.byteOffset, blocks)
}

/** A batmap that is not right is done without: the sector bitmaps have it all. */
async function readBatmap(
  file: ImageFile,
  footer: Footer,
  header: DynamicHeader,
  table: Uint32Array,
  flaws: string[],
): Promise<Pick<SparseStructures, 'batmap' | 'complete'>> {
  const complete = new Uint8Array(Math.ceil(table.length / 8))
  if (!hasBatmap(footer)) return { batmap: undefined, complete }
  const at = batmapHeaderOffset(header)
  const { size } = file.geometry
  if (at + SECTOR > size) return doneWithout('the batmap lies beyond the end of the file')
  const batmap = parseBatmapHeader(await bytesAt(file, at, SECTOR), table.length)
  if (typeof batmap === 'string') return doneWithout(batmap)
  const covered = Math.min(batmapCoverage(footer.currentSize), batmap.sectors * SECTOR)
  const objection = areasObjection(metadataAreas(footer, header, batmap), size)
  if (objection !== undefined) return doneWithout(objection)
  const map = await bytesAt(file, batmap.offset, covered)
  if (!batmapFits(batmap, map, covered)) return doneWithout('the checksum of the batmap is wrong')
  for (const [block, entry] of table.entries())
    if (entry !== UNUSED && bitAt(map, block)) setBit(complete, block)
  return { batmap, complete }

  function doneWithout(why: string): Pick<SparseStructures, 'batmap' | 'complete'> {
    flaws.push(why)
    return { batmap: undefined, complete }
  }
}

async function readParentNames(file: ImageFile, header: DynamicHeader): Promise<string[]> {
  const names: string[] = []
  for (const locator of header.locators) {
    const { dataOffset, dataLength } = locator
    if (!isReadable(locator) || dataOffset + dataLength > file.geometry.size) continue
    names.push(...decodeLocator(locator, await bytesAt(file, dataOffset, dataLength)))
  }
  const plain = decodeParentName(header)
  if (plain !== '') names.push(plain)
  return [...new Set(names)]
}

async function bytesAt(file: ImageFile, at: number, length: number): Promise<Buffer> {
  const bytes = Buffer.from(new ArrayBuffer(length))
  await file.read(bytes, at)
  return bytes
}

function refuse(objection: string | undefined): void {
  if (objection !== undefined) throw refused(objection)
}

/** Without a place: readStructures() knows it. */
function refused(why: string): Fault {
  return new Fault('INVALID', why)
}
