/**
 * The replication link's frames: a 32-byte header, then the payload. Big-endian. Pure: bytes in, frames out.
 *
 *   offset size field
 *        0    4 CRC-32 of everything after it, payload included
 *        4    2 magic 0xc010
 *        6    1 type
 *        7    1 flags
 *        8    8 position   byte offset on the disk, or checkpoint number
 *       16    8 extent     bytes concerned, or a second number
 *       24    4 payload length in bytes
 *       28    2 disk       index in the order that the primary's hello lists
 *       30    2 zero
 *
 * Invariants:
 *  - A frame whose magic, type, length or checksum is wrong never reaches a machine: the link ends with a Fault.
 *  - Numbers are safe integers from here on.
 *  - No frame is longer than HEADER_SIZE + MAX_PAYLOAD, so a receiver's buffer is bounded.
 */

import { assert } from '../../core/assert.ts'
import { crc32 } from '../../core/crc32.ts'
import { Fault } from '../../core/fault.ts'
import { KiB } from '../../core/units.ts'

export const HEADER_SIZE = 32
/** Bytes. Longer writes are sent as several frames. */
export const MAX_PAYLOAD = 256 * KiB

const MAGIC = 0xc010
const TLS_ALERT = 21
const TLS_HANDSHAKE = 22

export const FRAME_TYPES = {
  hello: 1,
  refuse: 2,
  write: 3,
  zero: 4,
  checkpoint: 5,
  done: 6,
  heartbeat: 7,
  pressure: 8,
  /** These three are records of the journal, which has the same framing; a peer that sends one is refused. */
  discard: 9,
  state: 10,
  segment: 11,
  /** Of a new secondary: a range that it changed by itself. Then `ready`: it has told all of them. */
  dirty: 12,
  ready: 13,
  /** Of a primary: the secondary has what is protected from now on. */
  synced: 14,
  /** Of a primary that has become a secondary: the receiver, at this checkpoint, is to be the primary. */
  handover: 15,
  /** Of a primary: what would a range hold if all before this frame were committed? Only to who has the feature `checksums`. */
  compare: 20,
  /** The answer: the checksums of its pieces, one after the other; none where it cannot be read. */
  sums: 21,
  /** Of a primary: which of the next two it asks for; position: the number of its level (group.ts, ACKS). */
  acknowledge: 16,
  /** Of a secondary: so many data frames of this link (position) are in its memory; are on its stable storage. */
  received: 17,
  stored: 18,
  /** Of a primary: it has one more disk, `disk` is its number, payload: name and size. Only to who has the feature `disks`. */
  offer: 30,
  /** Of a secondary: it has that disk, and takes it. */
  accept: 31,
  /** Of either: it has that disk no longer. */
  withdraw: 32,
  /** Of a primary: all of that disk is sent; it counts with the next checkpoint. */
  complete: 33,
  /** Of a secondary: that disk has `extent` bytes there now. */
  resized: 34,
} as const

export type FrameType = keyof typeof FRAME_TYPES

/** zero: the range is a hole afterwards where the image can have holes. */
export const PUNCH = 1
/** checkpoint: a part of a copy, after which the secondary is a mixture until the copy is whole. */
export const PARTIAL = 1
/** checkpoint: the primary made it by itself; it answers no command. */
export const UNASKED = 2

export interface Frame {
  type: FrameType
  flags: number
  position: number
  extent: number
  disk: number
  /** Valid only until the decoder is used again. */
  payload: Buffer
}

const NAMES = new Map<number, FrameType>(
  Object.entries(FRAME_TYPES).map(([name, code]) => [code, name as FrameType]),
)
const NOTHING = Buffer.alloc(0)

/** A frame with only the fields that matter to its type given. */
export function frame(type: FrameType, fields: Partial<Omit<Frame, 'type'>> = {}): Frame {
  return { type, flags: 0, position: 0, extent: 0, disk: 0, payload: NOTHING, ...fields }
}

/** Writes the header of `frame` at `at` of `into`; `contiguous` when the payload already stands right behind it. */
export function encodeHeader(
  into: Buffer,
  at: number,
  frame: Readonly<Frame>,
  contiguous: boolean,
): void {
  const { payload } = frame
  assert(payload.length <= MAX_PAYLOAD, 'a frame carries at most MAX_PAYLOAD')
  into.writeUInt16BE(MAGIC, at + 4)
  into.writeUInt8(FRAME_TYPES[frame.type], at + 6)
  into.writeUInt8(frame.flags, at + 7)
  writeU64(into, frame.position, at + 8)
  writeU64(into, frame.extent, at + 16)
  into.writeUInt32BE(payload.length, at + 24)
  into.writeUInt16BE(frame.disk, at + 28)
  into.writeUInt16BE(0, at + 30)
  const end = contiguous ? at + HEADER_SIZE + payload.length : at + HEADER_SIZE
  let checksum = crc32(into.subarray(at + 4, end))
  if (!contiguous && payload.length > 0) checksum = crc32(payload, checksum)
  into.writeUInt32BE(checksum, at)
}

/** The whole frame as bytes of its own. For control frames, which are few and small. */
export function encodeFrame(frame: Readonly<Frame>): Buffer {
  const bytes = Buffer.allocUnsafe(HEADER_SIZE + frame.payload.length)
  frame.payload.copy(bytes, HEADER_SIZE)
  encodeHeader(bytes, 0, frame, true)
  return bytes
}

/**
 * Decodes the frame at `start` of `bytes`, of which the part before `end` has arrived, into `out`.
 * @returns the offset behind the frame, or -1 while it is incomplete
 * @throws Fault PROTOCOL when the bytes cannot be a frame
 */
export function decodeFrame(bytes: Buffer, start: number, end: number, out: Frame): number {
  const have = end - start
  if (have >= 6 && bytes.readUInt16BE(start + 4) !== MAGIC) throw foreign(bytes, start)
  if (have < HEADER_SIZE) return -1
  const length = bytes.readUInt32BE(start + 24)
  if (length > MAX_PAYLOAD) throw broken(`a payload of ${length} bytes is more than ${MAX_PAYLOAD}`)
  const behind = start + HEADER_SIZE + length
  if (behind > end) return -1
  const expected = bytes.readUInt32BE(start)
  if (crc32(bytes.subarray(start + 4, behind)) !== expected) throw broken('wrong checksum')
  const type = NAMES.get(bytes.readUInt8(start + 6))
  if (type === undefined) throw broken(`unknown frame type ${bytes.readUInt8(start + 6)}`)
  out.type = type
  out.flags = bytes.readUInt8(start + 7)
  out.position = readU64(bytes, start + 8)
  out.extent = readU64(bytes, start + 16)
  out.disk = bytes.readUInt16BE(start + 28)
  out.payload = length === 0 ? NOTHING : bytes.subarray(start + HEADER_SIZE, behind)
  return behind
}

/** The payload length that the header at the start of `bytes` announces. */
export function payloadLength(bytes: Buffer): number {
  return bytes.readUInt32BE(24)
}

function writeU64(into: Buffer, value: number, at: number): void {
  assert(Number.isSafeInteger(value) && value >= 0, 'numbers on the link are safe integers')
  into.writeUInt32BE(Math.floor(value / 2 ** 32), at)
  into.writeUInt32BE(value >>> 0, at + 4)
}

function readU64(bytes: Buffer, at: number): number {
  const high = bytes.readUInt32BE(at)
  if (high >= 2 ** 21) throw broken('a number beyond 2^53')
  return high * 2 ** 32 + bytes.readUInt32BE(at + 4)
}

/** Both sides meet the other kind of connection here: a TLS record begins with its type and version (RFC 8446, section 5.1). */
function foreign(bytes: Buffer, start: number): Fault {
  const [type, major] = bytes.subarray(start, start + 2)
  if (major !== 3 || (type !== TLS_HANDSHAKE && type !== TLS_ALERT))
    return broken('not a replication frame')
  return new Fault('PROTOCOL', 'the other side speaks TLS, and this side has no credentials', {
    remedy: 'give both sides the same tls-creds= or tls-psk=',
  })
}

function broken(why: string): Fault {
  return new Fault('PROTOCOL', `broken replication frame: ${why}`)
}
