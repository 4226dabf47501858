/** Units and the few sizes that everything shares. All sizes are bytes unless a name says otherwise. */

import { Fault } from './fault.ts'

export const KiB = 1024
export const MiB = 1024 * KiB
export const GiB = 1024 * MiB
export const TiB = 1024 * GiB

/** The unit of replication and of VHD and QCOW bitmaps, in bytes. */
export const SECTOR = 512

const SUFFIXES: Readonly<Record<string, number>> = { '': 1, K: KiB, M: MiB, G: GiB, T: TiB }

/**
 * Reads `10G`, `512`, `1.5M`, `64KiB` as bytes (powers of 1024, as qemu-img does).
 * @throws Fault INVALID when the text is not a size, not a whole number of bytes, or beyond 2^53.
 */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?$/i.exec(text.trim())
  const factor = SUFFIXES[match?.[2]?.toUpperCase() ?? '']
  const size = Number(match?.[1]) * (factor ?? Number.NaN)
  if (!Number.isSafeInteger(size)) {
    throw new Fault('INVALID', `not a size: "${text}"`, {
      remedy: 'write bytes or a number with K, M, G or T, such as 10G',
    })
  }
  return size
}

/** `1536` as `1.5 KiB`. For people; never parsed. */
export function formatSize(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit += 1
  }
  const digits = Number.isInteger(value) ? 0 : value >= 100 ? 0 : 1
  return `${value.toFixed(digits)} ${units[unit] ?? ''}`
}
