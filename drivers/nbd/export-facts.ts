/** What the server says of an export, as the block device contract has it. Pure. */

import type { Capabilities, Geometry } from '../../core/block-device.ts'
import type { ExportInfo } from '../../nbd/client-handshake.ts'
import {
  MAX_PAYLOAD,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_ROTATIONAL,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from '../../nbd/protocol.ts'

export function geometryOf({ size, flags, block }: ExportInfo, readOnly: boolean): Geometry {
  const { min, preferred } = block
  const most = Math.min(block.max, MAX_PAYLOAD)
  return {
    size,
    block: { min, preferred, max: most - (most % min) },
    readOnly: readOnly || (flags & NBD_FLAG_READ_ONLY) !== 0,
    rotational: (flags & NBD_FLAG_ROTATIONAL) !== 0,
  }
}

export function capabilitiesOf(
  { flags, allocationId }: ExportInfo,
  readOnly: boolean,
): Capabilities {
  const writable = !readOnly && (flags & NBD_FLAG_READ_ONLY) === 0
  const zero = writable && (flags & NBD_FLAG_SEND_WRITE_ZEROES) !== 0
  return {
    flush: (flags & NBD_FLAG_SEND_FLUSH) !== 0,
    fua: (flags & NBD_FLAG_SEND_FUA) !== 0,
    trim: writable && (flags & NBD_FLAG_SEND_TRIM) !== 0,
    zero,
    fastZero: zero && (flags & NBD_FLAG_SEND_FAST_ZERO) !== 0,
    status: allocationId !== undefined,
    resize: false,
    cache: false,
  }
}

/** The flags whose loss would break a promise made to those above. */
const PROMISED = [
  [NBD_FLAG_SEND_FLUSH, 'flush'],
  [NBD_FLAG_SEND_FUA, 'forced unit access'],
  [NBD_FLAG_SEND_TRIM, 'trim'],
  [NBD_FLAG_SEND_WRITE_ZEROES, 'zeroes'],
  [NBD_FLAG_SEND_FAST_ZERO, 'fast zeroes'],
] as const

/**
 * What is wrong with an export, by itself (section "Block size constraints") and, after a reconnect, as the one that was
 * served before.
 */
export function exportObjection(info: ExportInfo, before?: ExportInfo): string | undefined {
  const { min, preferred, max } = info.block
  if (!isPowerOfTwo(min) || min > 65_536) return `names a smallest block of ${min} bytes`
  if (!isPowerOfTwo(preferred) || preferred < min)
    return `names a preferred block of ${preferred} bytes`
  if (max < min) return `names a largest request of ${max} bytes`
  if (!Number.isSafeInteger(info.size) || info.size === 0)
    return `names a size of ${info.size} bytes`
  if (before === undefined) return undefined
  if (info.size !== before.size) return `has a disk of ${info.size} bytes now, not ${before.size}`
  if (min > before.block.min || max < Math.min(before.block.max, MAX_PAYLOAD))
    return 'takes other sizes of requests than before'
  if ((info.flags & ~before.flags & NBD_FLAG_READ_ONLY) !== 0)
    return 'serves the disk read-only now'
  for (const [flag, name] of PROMISED)
    if ((before.flags & ~info.flags & flag) !== 0) return `offers no ${name} any more`
  if (before.allocationId !== undefined && info.allocationId === undefined)
    return 'does not tell the status of blocks any more'
  return undefined
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value))
}
