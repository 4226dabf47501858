/**
 * The NBD protocol's numbers, under the names that its specification gives them (doc/proto.md of the NBD project),
 * and the two mappings between its errors and ours. Nothing here does I/O.
 */

import type { FaultCode } from '../core/fault.ts'
import { MiB } from '../core/units.ts'

// Handshake magics (section "Fixed newstyle negotiation"). 64-bit numbers, compared as two 32-bit halves.
export const NBDMAGIC = 0x4e42444d41474943n
export const IHAVEOPT = 0x49484156454f5054n
export const NBD_REP_MAGIC = 0x3e889045565a9n

// Handshake flags, server and client.
export const NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
export const NBD_FLAG_NO_ZEROES = 1 << 1
export const NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0
export const NBD_FLAG_C_NO_ZEROES = 1 << 1

// Options (section "Option types").
export const NBD_OPT_EXPORT_NAME = 1
export const NBD_OPT_ABORT = 2
export const NBD_OPT_LIST = 3
export const NBD_OPT_STARTTLS = 5
export const NBD_OPT_INFO = 6
export const NBD_OPT_GO = 7
export const NBD_OPT_STRUCTURED_REPLY = 8
export const NBD_OPT_LIST_META_CONTEXT = 9
export const NBD_OPT_SET_META_CONTEXT = 10
export const NBD_OPT_EXTENDED_HEADERS = 11

// Option replies (section "Option reply types").
const ERROR_REPLY = 2 ** 31
export const NBD_REP_ACK = 1
export const NBD_REP_SERVER = 2
export const NBD_REP_INFO = 3
export const NBD_REP_META_CONTEXT = 4
export const NBD_REP_ERR_UNSUP = ERROR_REPLY + 1
export const NBD_REP_ERR_POLICY = ERROR_REPLY + 2
export const NBD_REP_ERR_INVALID = ERROR_REPLY + 3
export const NBD_REP_ERR_TLS_REQD = ERROR_REPLY + 5
export const NBD_REP_ERR_UNKNOWN = ERROR_REPLY + 6
export const NBD_REP_ERR_SHUTDOWN = ERROR_REPLY + 7
export const NBD_REP_ERR_TOO_BIG = ERROR_REPLY + 9
export const NBD_REP_ERR_EXT_HEADER_REQD = ERROR_REPLY + 10

export function isErrorReply(type: number): boolean {
  return type >= ERROR_REPLY
}

// Information types of INFO and GO.
export const NBD_INFO_EXPORT = 0
export const NBD_INFO_NAME = 1
export const NBD_INFO_DESCRIPTION = 2
export const NBD_INFO_BLOCK_SIZE = 3

// Transmission flags (section "Transmission flags").
export const NBD_FLAG_HAS_FLAGS = 1 << 0
export const NBD_FLAG_READ_ONLY = 1 << 1
export const NBD_FLAG_SEND_FLUSH = 1 << 2
export const NBD_FLAG_SEND_FUA = 1 << 3
export const NBD_FLAG_ROTATIONAL = 1 << 4
export const NBD_FLAG_SEND_TRIM = 1 << 5
export const NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6
export const NBD_FLAG_SEND_DF = 1 << 7
export const NBD_FLAG_CAN_MULTI_CONN = 1 << 8
export const NBD_FLAG_SEND_CACHE = 1 << 10
export const NBD_FLAG_SEND_FAST_ZERO = 1 << 11
export const NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12

// Transmission (sections "Request message", "Simple reply message", "Structured reply chunk message"; "Extended reply
// chunk message" of the EXTENDED_HEADERS extension).
export const NBD_REQUEST_MAGIC = 0x25609513
export const NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef
export const NBD_EXTENDED_REPLY_MAGIC = 0x6e8a278c
export const REQUEST_HEADER_SIZE = 28
export const EXTENDED_REQUEST_HEADER_SIZE = 32
export const SIMPLE_REPLY_SIZE = 16
export const STRUCTURED_CHUNK_SIZE = 20
export const EXTENDED_CHUNK_SIZE = 32

// Structured replies (section "Structured reply types").
export const NBD_REPLY_FLAG_DONE = 1 << 0
export const NBD_REPLY_TYPE_NONE = 0
export const NBD_REPLY_TYPE_OFFSET_DATA = 1
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2
export const NBD_REPLY_TYPE_BLOCK_STATUS = 5
export const NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6
export const NBD_REPLY_TYPE_ERROR = 2 ** 15 + 1

// Status flags (section "`base:allocation` metadata context").
export const NBD_STATE_HOLE = 1 << 0
export const NBD_STATE_ZERO = 1 << 1

export const NBD_CMD_READ = 0
export const NBD_CMD_WRITE = 1
export const NBD_CMD_DISC = 2
export const NBD_CMD_FLUSH = 3
export const NBD_CMD_TRIM = 4
export const NBD_CMD_CACHE = 5
export const NBD_CMD_WRITE_ZEROES = 6
export const NBD_CMD_BLOCK_STATUS = 7

export const NBD_CMD_FLAG_FUA = 1 << 0
export const NBD_CMD_FLAG_NO_HOLE = 1 << 1
export const NBD_CMD_FLAG_DF = 1 << 2
export const NBD_CMD_FLAG_REQ_ONE = 1 << 3
export const NBD_CMD_FLAG_FAST_ZERO = 1 << 4
export const NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5

// Errors on the wire: NBD's own numbers, never the host's, never negative.
export const NBD_OK = 0
export const NBD_EPERM = 1
export const NBD_EIO = 5
export const NBD_ENOMEM = 12
export const NBD_EINVAL = 22
export const NBD_ENOSPC = 28
export const NBD_EOVERFLOW = 75
export const NBD_ENOTSUP = 95
export const NBD_ESHUTDOWN = 108

/** The longest string that the protocol allows, in bytes (section "Values"). */
export const MAX_STRING = 4096
/** The largest payload that is promised to every client, in bytes (section "Block size constraints"). */
export const MAX_PAYLOAD = 32 * MiB

const ERRNO_OF_FAULT: Readonly<Record<FaultCode, number>> = {
  IO: NBD_EIO,
  NO_SPACE: NBD_ENOSPC,
  NO_MEMORY: NBD_ENOMEM,
  INVALID: NBD_EINVAL,
  NOT_PERMITTED: NBD_EPERM,
  NOT_SUPPORTED: NBD_ENOTSUP,
  NOT_FOUND: NBD_EINVAL,
  IN_USE: NBD_EIO,
  TIMEOUT: NBD_EIO,
  LINK_LOST: NBD_EIO,
  PROTOCOL: NBD_EIO,
  REFUSED: NBD_EPERM,
  SHUTDOWN: NBD_ESHUTDOWN,
}

/** The number that a client gets for a fault. */
export function errnoOf(code: FaultCode): number {
  return ERRNO_OF_FAULT[code]
}

const FAULT_OF_ERRNO: ReadonlyMap<number, FaultCode> = new Map([
  [NBD_EPERM, 'NOT_PERMITTED'],
  [NBD_EIO, 'IO'],
  [NBD_ENOMEM, 'NO_MEMORY'],
  [NBD_EINVAL, 'INVALID'],
  [NBD_ENOSPC, 'NO_SPACE'],
  [NBD_EOVERFLOW, 'INVALID'],
  [NBD_ENOTSUP, 'NOT_SUPPORTED'],
  [NBD_ESHUTDOWN, 'SHUTDOWN'],
])

/** The fault that a server's error means; unknown numbers count as EINVAL (section "Error values"). */
export function faultCodeOf(errno: number): FaultCode {
  return FAULT_OF_ERRNO.get(errno) ?? 'INVALID'
}

/** A 64-bit offset or length as a number; what a double cannot hold exactly saturates, beyond the end of any disk. */
export function readOffset(bytes: Buffer, at: number): number {
  const offset = bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4)
  return offset > Number.MAX_SAFE_INTEGER ? Number.MAX_SAFE_INTEGER : offset
}

/** Writes a safe integer as 64 bits. */
export function writeOffset(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32BE(Math.floor(value / 2 ** 32), at)
  bytes.writeUInt32BE(value % 2 ** 32, at + 4)
}
