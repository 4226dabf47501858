/**
 * Whether a request may reach the device, decided by its header alone: what was negotiated, what the device can do, and
 * the limits. Pure; one test per line.
 *
 * Invariant: a request with a flag, length or payload that the protocol does not give it is refused, never bent.
 */

import {
  FAST_ZERO,
  FUA,
  NO_HOLE,
  type BlockDevice,
  type RequestFlags,
} from '../core/block-device.ts'
import { isFilterLength } from './block-status.ts'
import type { RequestHeader } from './decoder.ts'
import { maxPayload } from './export.ts'
import type { MetaContext } from './meta-context.ts'
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_EPERM,
} from './protocol.ts'
import type { ReplyFormat } from './reply-format.ts'

/** Why a request is refused: an error of the protocol, and the reason for people. */
export interface Objection {
  readonly error: number
  readonly reason: string
}

export interface Terms {
  readonly device: BlockDevice
  readonly format: ReplyFormat
  /** What BLOCK_STATUS may ask for. */
  readonly contexts: readonly MetaContext[]
}

function invalid(reason: string): Objection {
  return { error: NBD_EINVAL, reason }
}

const READ_ONLY: Objection = { error: NBD_EPERM, reason: 'the export is read-only' }
const UNKNOWN_COMMAND = invalid('the command is not known')
const BAD_FLAGS = invalid('the command does not take these flags')
const NO_PAYLOAD = invalid('the command takes no payload')
const PAYLOAD_MISSING = invalid('a WRITE needs its payload')
const TOO_LONG = invalid('the request is longer than the maximum payload')
const NOT_OFFERED = invalid('the export does not offer this command')
const FLUSH_RANGE = invalid('a FLUSH has neither offset nor length')
const NO_CONTEXTS = invalid('no metadata context was negotiated')
const BAD_FILTER = invalid('the payload is no choice among the negotiated metadata contexts')
const NO_LENGTH = invalid('the status of no bytes')

/** Undefined when the request may be executed. Neither the range nor memory is looked at here. */
export function objectionTo(header: RequestHeader, terms: Terms): Objection | undefined {
  const { device, contexts } = terms
  const { type, flags, length, payload } = header
  const { can, geometry } = device
  const changes = type === NBD_CMD_WRITE || type === NBD_CMD_TRIM || type === NBD_CMD_WRITE_ZEROES
  if (changes && geometry.readOnly) return READ_ONLY
  if ((flags & ~allowedFlags(type, terms)) !== 0)
    return (flags & NBD_CMD_FLAG_PAYLOAD_LEN) === 0 ? BAD_FLAGS : NO_PAYLOAD
  switch (type) {
    case NBD_CMD_READ:
      return length > maxPayload(device) ? TOO_LONG : undefined
    case NBD_CMD_WRITE:
      if (payload !== length) return PAYLOAD_MISSING
      return length > maxPayload(device) ? TOO_LONG : undefined
    case NBD_CMD_FLUSH:
      if (!can.flush) return NOT_OFFERED
      return length !== 0 || header.offset !== 0 ? FLUSH_RANGE : undefined
    case NBD_CMD_TRIM:
      return can.trim ? undefined : NOT_OFFERED
    case NBD_CMD_CACHE:
      return can.cache ? undefined : NOT_OFFERED
    case NBD_CMD_WRITE_ZEROES:
      return can.zero ? undefined : NOT_OFFERED
    case NBD_CMD_BLOCK_STATUS:
      if (contexts.length === 0) return NO_CONTEXTS
      if (payload !== 0) return isFilterLength(payload, contexts) ? undefined : BAD_FILTER
      return length === 0 ? NO_LENGTH : undefined
    default:
      return UNKNOWN_COMMAND
  }
}

/** The command flags that were negotiated for this device (section "Command flags"). */
function allowedFlags(type: number, { device, format }: Terms): number {
  const { can } = device
  const chunks = format.kind !== 'simple'
  const payload = format.kind === 'extended' ? NBD_CMD_FLAG_PAYLOAD_LEN : 0
  const fua = can.fua ? NBD_CMD_FLAG_FUA : 0
  switch (type) {
    case NBD_CMD_READ:
      return chunks ? fua | NBD_CMD_FLAG_DF : fua
    case NBD_CMD_WRITE:
      return fua | payload
    case NBD_CMD_WRITE_ZEROES:
      return fua | NBD_CMD_FLAG_NO_HOLE | (can.fastZero ? NBD_CMD_FLAG_FAST_ZERO : 0)
    case NBD_CMD_BLOCK_STATUS:
      return fua | NBD_CMD_FLAG_REQ_ONE | payload
    default:
      return fua
  }
}

/** The device's flags for a command's. */
export function requestFlags(flags: number): RequestFlags {
  if (flags === 0) return 0
  return (
    ((flags & NBD_CMD_FLAG_FUA) !== 0 ? FUA : 0) |
    ((flags & NBD_CMD_FLAG_NO_HOLE) !== 0 ? NO_HOLE : 0) |
    ((flags & NBD_CMD_FLAG_FAST_ZERO) !== 0 ? FAST_ZERO : 0)
  )
}
