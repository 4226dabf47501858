/**
 * What is wrong with a QCOW2 image, found by a reader that shares no code with the driver: every reference is counted
 * and compared with the refcounts and with bit 63. Images of tests only: all of it is in memory, and trusted to be small.
 */

const OFFSET = 0x00ff_ffff_ffff_fe00n
const COPIED = 1n << 63n
const COMPRESSED = 1n << 62n

export interface Inspection {
  readonly errors: string[]
  /** Clusters that are counted and not used. */
  readonly leaks: number
}

export function inspectQcow2(image: Buffer): Inspection {
  const errors: string[] = []
  const clusterBits = image.readUInt32BE(20)
  const cluster = 2 ** clusterBits
  const version = image.readUInt32BE(4)
  const u64 = (at: number): bigint => (at + 8 <= image.length ? image.readBigUInt64BE(at) : 0n)
  const incompatible = version === 3 ? u64(72) : 0n
  const refcountBits = version === 3 ? 2 ** image.readUInt32BE(96) : 16
  const entryBytes = (incompatible & 16n) !== 0n ? 16 : 8
  const l1Size = image.readUInt32BE(36)
  const l1At = Number(u64(40))
  const tableAt = Number(u64(48))
  const tableClusters = image.readUInt32BE(56)
  if ((incompatible & 3n) !== 0n) errors.push(`incompatible features ${incompatible}`)

  const references = new Map<number, number>()
  const refer = (at: number, length: number): void => {
    for (let each = Math.floor(at / cluster); each * cluster < at + length; each += 1)
      references.set(each, (references.get(each) ?? 0) + 1)
  }
  refer(0, cluster)
  refer(l1At, l1Size * 8)
  refer(tableAt, tableClusters * cluster)
  const blocks: number[] = []
  for (let index = 0; index < (tableClusters * cluster) / 8; index += 1) {
    const at = Number(u64(tableAt + index * 8))
    blocks.push(at)
    if (at !== 0) refer(at, cluster)
    if (at % cluster !== 0 || at >= Math.ceil(image.length / cluster) * cluster)
      errors.push(`refcount block ${index} at ${at}`)
  }
  const copied: { at: number; flag: boolean; name: string }[] = []
  const walk = (l1: number, entries: number, active: boolean): void => {
    for (let index = 0; index < entries; index += 1) {
      const l1Entry = u64(l1 + index * 8)
      const l2At = Number(l1Entry & OFFSET)
      if (l2At === 0) continue
      if (l2At + cluster > image.length) errors.push(`L2 table ${index} at ${l2At}`)
      refer(l2At, cluster)
      if (active)
        copied.push({ at: l2At, flag: (l1Entry & COPIED) !== 0n, name: `L1 entry ${index}` })
      for (let entry = 0; entry < cluster / entryBytes; entry += 1) {
        const l2Entry = u64(l2At + entry * entryBytes)
        const name = `entry ${entry} of L2 table ${index}`
        if ((l2Entry & COMPRESSED) !== 0n) {
          const width = BigInt(62 - (clusterBits - 8))
          const at = Number(l2Entry & ((1n << width) - 1n))
          const sectors = Number((l2Entry & (COMPRESSED - 1n)) >> width) + 1
          refer(at, sectors * 512 - (at % 512))
          continue
        }
        const at = Number(l2Entry & OFFSET)
        if (entryBytes === 16) {
          const bitmap = u64(l2At + entry * 16 + 8)
          if ((bitmap & (bitmap >> 32n) & 0xffff_ffffn) !== 0n) errors.push(`${name}: both bits`)
          if ((bitmap & 0xffff_ffffn) !== 0n && at === 0) errors.push(`${name}: nowhere`)
        }
        if (at === 0 || (incompatible & 4n) !== 0n) continue
        if (at % cluster !== 0 || at >= image.length) errors.push(`${name} names ${at}`)
        refer(at, cluster)
        if (active) copied.push({ at, flag: (l2Entry & COPIED) !== 0n, name })
      }
    }
  }
  walk(l1At, l1Size, true)
  let snapshotAt = Number(u64(64))
  for (let index = 0; index < image.readUInt32BE(60); index += 1) {
    const begin = snapshotAt
    const l1 = Number(u64(begin))
    const entries = image.readUInt32BE(begin + 8)
    refer(l1, entries * 8)
    walk(l1, entries, false)
    const names = image.readUInt16BE(begin + 12) + image.readUInt16BE(begin + 14)
    snapshotAt = Math.ceil((begin + 40 + image.readUInt32BE(begin + 36) + names) / 8) * 8
  }
  if (image.readUInt32BE(60) > 0) refer(Number(u64(64)), snapshotAt - Number(u64(64)))

  const refcount = (index: number): number => {
    const perBlock = (cluster * 8) / refcountBits
    const block = blocks[Math.floor(index / perBlock)] ?? 0
    if (block === 0) return 0
    const bit = (index % perBlock) * refcountBits
    if (refcountBits < 8) return (image[block + (bit >> 3)]! >> (bit & 7)) & (2 ** refcountBits - 1)
    let value = 0
    for (let byte = 0; byte < refcountBits / 8; byte += 1)
      value = value * 256 + (image[block + bit / 8 + byte] ?? 0)
    return value
  }
  let leaks = 0
  const last = Math.max(...references.keys(), Math.ceil(image.length / cluster))
  for (let index = 0; index <= last; index += 1) {
    const recorded = refcount(index)
    const counted = references.get(index) ?? 0
    if (recorded < counted) errors.push(`cluster ${index}: refcount ${recorded} for ${counted}`)
    if (recorded > counted) leaks += 1
  }
  for (const { at, flag, name } of copied) {
    const single = references.get(at / cluster) === 1
    // A leaked reference of a snapshot's past may leave a flag clear that could be set; never the other way round.
    if (flag && !single) errors.push(`${name}: bit 63 is set, but its cluster is shared`)
  }
  return { errors, leaks }
}
