/**
 * The three forms of a reply: simple, structured and extended (sections "Simple reply message", "Structured reply chunk
 * message", and "Extended reply chunk message" of the EXTENDED_HEADERS extension). Pure: bytes are written where told.
 *
 * Invariants:
 *  - A reply carries the cookie of its request, an extended one its offset too, bit by bit as the client sent them.
 *  - A simple reply answers only clients that negotiated no chunks: one form per connection, which a client need not
 *    look for.
 */

import {
  EXTENDED_CHUNK_SIZE,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_OK,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE,
  STRUCTURED_CHUNK_SIZE,
  writeOffset,
} from './protocol.ts'

/** What a reply repeats of its request: opaque 64-bit numbers, as halves. */
export interface Asked {
  readonly cookieHigh: number
  readonly cookieLow: number
  readonly offsetHigh: number
  readonly offsetLow: number
}

export interface SimpleFormat {
  readonly kind: 'simple'
  /** Bytes of a success without data. */
  readonly doneSize: number
  /** Bytes before the data of a READ that is answered in one piece. */
  readonly dataHeaderSize: number
  writeDone(bytes: Buffer, at: number, asked: Asked): void
  /** What stands before `length` bytes of the disk from byte `offset`, which complete the reply. */
  writeDataHeader(bytes: Buffer, at: number, asked: Asked, offset: number, length: number): void
}

export interface ChunkFormat extends Omit<SimpleFormat, 'kind'> {
  readonly kind: 'structured' | 'extended'
  /** Bytes of a chunk before its payload. */
  readonly headerSize: number
  readonly statusType: number
  /** Bytes of a status chunk before its descriptors, header included; and of each descriptor. */
  readonly statusHeaderSize: number
  readonly descriptorSize: number
  /** @param flags 0, or NBD_REPLY_FLAG_DONE on the last chunk; @param length bytes of the payload */
  writeHeader(
    bytes: Buffer,
    at: number,
    flags: number,
    type: number,
    asked: Asked,
    length: number,
  ): void
}

export type ReplyFormat = SimpleFormat | ChunkFormat

/** magic u32, error u32, cookie u64. */
export function writeSimpleReply(bytes: Buffer, at: number, error: number, asked: Asked): void {
  bytes.writeUInt32BE(NBD_SIMPLE_REPLY_MAGIC, at)
  bytes.writeUInt32BE(error, at + 4)
  bytes.writeUInt32BE(asked.cookieHigh, at + 8)
  bytes.writeUInt32BE(asked.cookieLow, at + 12)
}

/** magic u32, flags u16, type u16, cookie u64, length u32. */
function writeStructuredHeader(
  bytes: Buffer,
  at: number,
  flags: number,
  type: number,
  asked: Asked,
  length: number,
): void {
  bytes.writeUInt32BE(NBD_STRUCTURED_REPLY_MAGIC, at)
  bytes.writeUInt16BE(flags, at + 4)
  bytes.writeUInt16BE(type, at + 6)
  bytes.writeUInt32BE(asked.cookieHigh, at + 8)
  bytes.writeUInt32BE(asked.cookieLow, at + 12)
  bytes.writeUInt32BE(length, at + 16)
}

/** magic u32, flags u16, type u16, cookie u64, offset u64 of the request, length u64. */
function writeExtendedHeader(
  bytes: Buffer,
  at: number,
  flags: number,
  type: number,
  asked: Asked,
  length: number,
): void {
  bytes.writeUInt32BE(NBD_EXTENDED_REPLY_MAGIC, at)
  bytes.writeUInt16BE(flags, at + 4)
  bytes.writeUInt16BE(type, at + 6)
  bytes.writeUInt32BE(asked.cookieHigh, at + 8)
  bytes.writeUInt32BE(asked.cookieLow, at + 12)
  bytes.writeUInt32BE(asked.offsetHigh, at + 16)
  bytes.writeUInt32BE(asked.offsetLow, at + 20)
  writeOffset(bytes, length, at + 24)
}

export const SIMPLE: SimpleFormat = {
  kind: 'simple',
  doneSize: SIMPLE_REPLY_SIZE,
  dataHeaderSize: SIMPLE_REPLY_SIZE,
  writeDone: (bytes, at, asked) => writeSimpleReply(bytes, at, NBD_OK, asked),
  writeDataHeader: (bytes, at, asked) => writeSimpleReply(bytes, at, NBD_OK, asked),
}

/** Bytes of OFFSET_DATA's payload before the data, and of all of OFFSET_HOLE's payload. */
const OFFSET_SIZE = 8
const HOLE_SIZE = 12

export const STRUCTURED: ChunkFormat = {
  kind: 'structured',
  doneSize: STRUCTURED_CHUNK_SIZE,
  dataHeaderSize: STRUCTURED_CHUNK_SIZE + OFFSET_SIZE,
  headerSize: STRUCTURED_CHUNK_SIZE,
  statusType: NBD_REPLY_TYPE_BLOCK_STATUS,
  statusHeaderSize: STRUCTURED_CHUNK_SIZE + 4,
  descriptorSize: 8,
  writeHeader: writeStructuredHeader,
  writeDone: (bytes, at, asked) =>
    writeStructuredHeader(bytes, at, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, asked, 0),
  writeDataHeader: (bytes, at, asked, offset, length) =>
    writeDataChunkHeader(STRUCTURED, bytes, at, NBD_REPLY_FLAG_DONE, asked, offset, length),
}

export const EXTENDED: ChunkFormat = {
  kind: 'extended',
  doneSize: EXTENDED_CHUNK_SIZE,
  dataHeaderSize: EXTENDED_CHUNK_SIZE + OFFSET_SIZE,
  headerSize: EXTENDED_CHUNK_SIZE,
  statusType: NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  statusHeaderSize: EXTENDED_CHUNK_SIZE + 8,
  descriptorSize: 16,
  writeHeader: writeExtendedHeader,
  writeDone: (bytes, at, asked) =>
    writeExtendedHeader(bytes, at, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, asked, 0),
  writeDataHeader: (bytes, at, asked, offset, length) =>
    writeDataChunkHeader(EXTENDED, bytes, at, NBD_REPLY_FLAG_DONE, asked, offset, length),
}

/** The beginning of an OFFSET_DATA chunk: its header, and the u64 offset on the disk. */
export function writeDataChunkHeader(
  format: ChunkFormat,
  bytes: Buffer,
  at: number,
  flags: number,
  asked: Asked,
  offset: number,
  length: number,
): void {
  const payload = OFFSET_SIZE + length
  format.writeHeader(bytes, at, flags, NBD_REPLY_TYPE_OFFSET_DATA, asked, payload)
  writeOffset(bytes, offset, at + format.headerSize)
}

/** An OFFSET_HOLE chunk: header, u64 offset on the disk, u32 length. */
export function holeChunk(
  format: ChunkFormat,
  flags: number,
  asked: Asked,
  offset: number,
  length: number,
): Buffer {
  const bytes = Buffer.allocUnsafe(format.headerSize + HOLE_SIZE)
  format.writeHeader(bytes, 0, flags, NBD_REPLY_TYPE_OFFSET_HOLE, asked, HOLE_SIZE)
  writeOffset(bytes, offset, format.headerSize)
  bytes.writeUInt32BE(length, format.headerSize + OFFSET_SIZE)
  return bytes
}

/** In UTF-16 units: at most 3000 bytes of UTF-8, within the protocol's limit on strings. */
const LONGEST_MESSAGE = 1000

/** An ERROR chunk, which ends its reply: header, u32 error, u16 length of the message, the message. */
export function errorChunk(
  format: ChunkFormat,
  asked: Asked,
  error: number,
  message: string,
): Buffer {
  const text = Buffer.from(message.slice(0, LONGEST_MESSAGE))
  const bytes = Buffer.allocUnsafe(format.headerSize + 6 + text.length)
  const payload = 6 + text.length
  format.writeHeader(bytes, 0, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, asked, payload)
  bytes.writeUInt32BE(error, format.headerSize)
  bytes.writeUInt16BE(text.length, format.headerSize + 4)
  text.copy(bytes, format.headerSize + 6)
  return bytes
}
