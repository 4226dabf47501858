/** A disk under test: its model, and its comparison with what a side holds. */

import { open } from 'node:fs/promises'

import { MiB } from '../../core/units.ts'
import { BlockHistory, type Bounds } from './block-history.ts'
import { attach, type Side } from './side.ts'

/** The memory and time of a checkpoint's bounds grow with the number of blocks, so larger disks have larger ones. */
const MAX_BLOCKS = 8192
/** Part of a disk that nobody writes, and that has to stay as it was. */
const UNTOUCHED = 1 / 16
/** Bytes that are read and compared at a time: whole blocks of any size. */
const PIECE = 1 * MiB

export interface SoakDisk {
  readonly name: string
  /** Bytes under test, from the beginning of the disk; a multiple of PIECE. */
  readonly size: number
  readonly history: BlockHistory
  /** The blocks that the guest uses; the rest stay untouched. */
  readonly used: number
}

/** Disks take turns to be written in blocks and in sectors. */
export function soakDisk(name: string, size: number, index: number, seed: number): SoakDisk {
  let blockSize = index % 2 === 0 ? 4096 : 512
  while (size / blockSize > MAX_BLOCKS && blockSize < PIECE) blockSize *= 2
  const blocks = size / blockSize
  const tag = (Math.imul(seed, 0x9e3779b1) + index) >>> 0
  const history = new BlockHistory(blocks, blockSize, tag)
  return { name, size, history, used: blocks - Math.ceil(blocks * UNTOUCHED) }
}

type Read = (into: Buffer, at: number) => Promise<void>

/** What a side serves. @returns what is wrong with it; each disk's first violation */
export async function examineServed(
  side: Side,
  disks: readonly SoakDisk[],
  bounds: readonly Bounds[],
  settle = false,
): Promise<string[]> {
  const violations: string[] = []
  for (const [index, disk] of disks.entries()) {
    const client = await attach(side, disk.name)
    const violation = await examine(
      disk,
      (into, at) => client.read(into, at),
      bounds[index],
      settle,
    )
    await client.disconnect()
    if (violation !== undefined) violations.push(`${side.name}, disk ${disk.name}: ${violation}`)
  }
  return violations
}

/** What an image file holds. @returns what is wrong with it */
export async function examineImage(
  path: string,
  disk: SoakDisk,
  bounds: Bounds,
): Promise<string[]> {
  const file = await open(path, 'r')
  try {
    const read: Read = async (into, at) => {
      const { bytesRead } = await file.read(into, 0, into.length, at)
      if (bytesRead < into.length) into.fill(0xff, bytesRead)
    }
    const violation = await examine(disk, read, bounds, false)
    return violation === undefined ? [] : [`image ${path}: ${violation}`]
  } finally {
    await file.close()
  }
}

async function examine(
  { size, history }: SoakDisk,
  read: Read,
  bounds: Bounds | undefined,
  settle: boolean,
): Promise<string | undefined> {
  const piece = Buffer.alloc(PIECE)
  for (let at = 0; at < size; at += PIECE) {
    await read(piece, at)
    const first = at / history.blockSize
    const allowed = bounds ?? history.exactly
    const violation = history.violation(piece, allowed, first)
    if (violation !== undefined) return violation
    if (settle) history.settle(piece, allowed, first)
  }
  return undefined
}
