/**
 * What a server offers: named, guarded devices, and the flags and sizes that a client is told about one.
 * Pure: the device's state at the moment of the call decides.
 */

import type { BlockDevice } from '../core/block-device.ts'
import type { ClientRule } from './access.ts'
import {
  MAX_PAYLOAD,
  NBD_FLAG_BLOCK_STATUS_PAYLOAD,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_ROTATIONAL,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from './protocol.ts'
import type { ReplyFormat } from './reply-format.ts'

/** Says when requests would only wait: then none is taken from the client. */
export interface Hold {
  readonly held: boolean
  /** Runs `told` once, when requests do not wait any more. The same function counts once. */
  whenLetGo(told: () => void): void
  forget(told: () => void): void
}

export interface Export {
  readonly name: string
  /** For people; may be empty. */
  readonly description: string
  /** Behind the guard: any range may be asked for, and a bad one is a Fault. */
  readonly device: BlockDevice
  readonly hold?: Hold
  /** Who may use it; undefined where everybody may who can connect. */
  readonly clients?: readonly ClientRule[]
}

export interface ExportTable {
  find(name: string): Export | undefined
  list(): readonly Export[]
}

/** The transmission flags that tell a client what it may send. `contexts`: some were selected for the export. */
export function transmissionFlags(
  { geometry, can }: BlockDevice,
  format: ReplyFormat,
  contexts: boolean,
): number {
  const writable = !geometry.readOnly
  let flags = NBD_FLAG_HAS_FLAGS
  // A flush covers the writes of every connection (core/block-device.ts), and nothing is cached per connection.
  flags |= NBD_FLAG_CAN_MULTI_CONN
  if (!writable) flags |= NBD_FLAG_READ_ONLY
  if (geometry.rotational) flags |= NBD_FLAG_ROTATIONAL
  if (can.flush) flags |= NBD_FLAG_SEND_FLUSH
  if (can.fua) flags |= NBD_FLAG_SEND_FUA
  if (writable && can.trim) flags |= NBD_FLAG_SEND_TRIM
  if (writable && can.zero) flags |= NBD_FLAG_SEND_WRITE_ZEROES
  if (writable && can.zero && can.fastZero) flags |= NBD_FLAG_SEND_FAST_ZERO
  if (can.cache) flags |= NBD_FLAG_SEND_CACHE
  if (format.kind !== 'simple') flags |= NBD_FLAG_SEND_DF
  if (format.kind === 'extended' && contexts) flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD
  return flags
}

/** The largest READ or WRITE that is served, in bytes: the device's own limit, or the protocol's common one. */
export function maxPayload(device: BlockDevice): number {
  return Math.min(device.geometry.block.max, MAX_PAYLOAD)
}
