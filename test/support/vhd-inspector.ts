/**
 * Reads VHD images and looks for faults in them, from the specification alone: it shares no code and no tables with
 * formats/vhd, so that a mistake there does not repeat itself here.
 */

const SECTOR = 512
const UNUSED = 0xffffffff

interface Vhd {
  readonly size: number
  /** 2 fixed, 3 dynamic, 4 differencing. */
  readonly type: number
  readonly uuid: string
  readonly blockSize: number
  readonly bat: readonly number[]
  readonly metadataEnd: number
}

/** What is wrong with the image; `closed` says that nobody had to be interrupted. */
export function inspectVhd(image: Buffer, closed: boolean): string | undefined {
  const first = footerObjection(image, 0)
  const last = footerObjection(image, image.length - SECTOR)
  if (last !== undefined && first !== undefined) return `no footer: ${first}; ${last}`
  const { type, bat, blockSize, metadataEnd } = parseVhd(image)
  if (type === 2) return last
  if (closed && first !== undefined) return `the first footer: ${first}`
  // A guest could have written what looks like a footer to wherever else the file ends.
  if (last !== undefined) return `the last footer: ${last}`
  if (closed && !image.subarray(0, SECTOR).equals(image.subarray(-SECTOR)))
    return 'the footers differ'
  const slot = bitmapBytes(blockSize) + blockSize
  const places = bat.filter((entry) => entry !== UNUSED).sort((a, b) => a - b)
  for (const [index, entry] of places.entries()) {
    const at = entry * SECTOR
    const end = closed ? image.length - SECTOR : image.length
    if (at < metadataEnd)
      return `the block at ${at} is in the metadata, which ends at ${metadataEnd}`
    if (at + slot > end) return `the block at ${at} is beyond the end`
    const next = places[index + 1]
    if (next !== undefined && next * SECTOR < at + slot) return `blocks overlap at ${at}`
  }
  return type === 3 ? dirtyClearSector(image) : undefined
}

/** The disk as the image has it; `parent` is what is below a differencing image. */
export function readVhd(image: Buffer, parent: Buffer = Buffer.alloc(0)): Buffer {
  const { size, type, bat, blockSize } = parseVhd(image)
  if (type === 2) return Buffer.from(image.subarray(0, size))
  const disk = Buffer.alloc(size)
  parent.copy(disk)
  for (let sector = 0; sector * SECTOR < size; sector += 1) {
    const at = sector * SECTOR
    const entry = bat[Math.floor(at / blockSize)] ?? UNUSED
    if (entry === UNUSED) continue
    const within = (at % blockSize) / SECTOR
    const bits = image[entry * SECTOR + (within >> 3)] ?? 0
    if ((bits & (128 >> (within % 8))) === 0) continue
    const data = entry * SECTOR + bitmapBytes(blockSize) + within * SECTOR
    image.copy(disk, at, data, data + SECTOR)
  }
  return disk
}

/** What others know the image by; a session leaves all of it alone. */
export function identityOf(image: Buffer): string {
  return image.subarray(image.length - SECTOR).toString('hex', 24, 40) + parseVhd(image).uuid
}

function parseVhd(image: Buffer): Vhd {
  const lastIsGood = footerObjection(image, image.length - SECTOR) === undefined
  const footer = lastIsGood ? image.subarray(image.length - SECTOR) : image.subarray(0, SECTOR)
  const size = Number(footer.readBigUInt64BE(48))
  const type = footer.readUInt32BE(60)
  const uuid = footer.toString('hex', 68, 84)
  if (type === 2) return { size, type, uuid, blockSize: 0, bat: [], metadataEnd: 0 }
  const header = image.subarray(Number(footer.readBigUInt64BE(16)))
  const table = Number(header.readBigUInt64BE(16))
  const entries = header.readUInt32BE(28)
  const blockSize = header.readUInt32BE(32)
  const bat = Array.from({ length: entries }, (_, index) => image.readUInt32BE(table + index * 4))
  let metadataEnd = table + Math.ceil((entries * 4) / SECTOR) * SECTOR
  if (image.toString('latin1', metadataEnd, metadataEnd + 8) === 'tdbatmap') {
    const sectors = image.readUInt32BE(metadataEnd + 16)
    metadataEnd = Number(image.readBigUInt64BE(metadataEnd + 8)) + sectors * SECTOR
  }
  return { size, type, uuid, blockSize, bat, metadataEnd }
}

function footerObjection(image: Buffer, at: number): string | undefined {
  const footer = image.subarray(at, at + SECTOR)
  if (footer.toString('latin1', 0, 8) !== 'conectix') return `nothing at ${at}`
  let sum = 0
  for (const [index, byte] of footer.entries()) if (index < 64 || index >= 68) sum += byte
  return footer.readUInt32BE(64) === ~sum >>> 0 ? undefined : `wrong checksum at ${at}`
}

/** QEMU shows what is on disk whether the bit is set or not: in a dynamic image, both must be zero. */
function dirtyClearSector(image: Buffer): string | undefined {
  const { bat, blockSize } = parseVhd(image)
  for (const entry of bat) {
    if (entry === UNUSED) continue
    for (let sector = 0; sector * SECTOR < blockSize; sector += 1) {
      const bits = image[entry * SECTOR + (sector >> 3)] ?? 0
      if ((bits & (128 >> (sector % 8))) !== 0) continue
      const data = entry * SECTOR + bitmapBytes(blockSize) + sector * SECTOR
      if (image.subarray(data, data + SECTOR).some((byte) => byte !== 0))
        return `sector ${sector} of the block at ${entry} has data and no bit`
    }
  }
  return undefined
}

function bitmapBytes(blockSize: number): number {
  return Math.ceil(blockSize / SECTOR / 8 / SECTOR) * SECTOR
}
