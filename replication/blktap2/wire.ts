/**
 * The replication wire of Xen's blktap2 (tools/blktap2/drivers/block-remus.c), as a codec. Pure: bytes in, requests out.
 *
 *   from       op     behind it
 *   primary    wreq   u32 number of sectors, u64 first sector, the sectors' data
 *   primary    sreq   nothing; "submit", which has no effect
 *   primary    creq   nothing; "commit": ends the epoch
 *   secondary  done   nothing; answers a creq
 *
 * Ops are four ASCII letters. Numbers are in the sender's byte order, which is little-endian wherever blktap2 runs.
 * Sectors have 512 bytes. There is no handshake, no checksum, no disk number, and no way to refuse.
 *
 * Invariants:
 *  - Written requests have at most MOST_SENT bytes of data: the old receiver has no room for more, reports an error without
 *    draining the data, and takes it for requests from then on.
 *  - Read requests have at most MOST_TAKEN bytes of data; what is larger, or no request, ends the stream with a Fault. No byte
 *    is ever skipped, so the reader cannot get out of step.
 */

import { Fault } from '../../core/fault.ts'
import { KiB, SECTOR } from '../../core/units.ts'
import { MAX_PAYLOAD } from '../machine/frame.ts'
import { StreamReader, type Framing } from '../machine/stream-reader.ts'

export const OP_SIZE = 4
export const WRITE_HEADER_SIZE = 16
/** Bytes of data in one request that is sent. */
export const MOST_SENT = 4 * KiB
/** Bytes of data in one request that is received. An old primary sends what a guest's request has: at most 44 KiB. */
export const MOST_TAKEN = MAX_PAYLOAD

/** A sector whose byte offset is a safe integer has a number below 2^44; this is its upper half. */
const HIGH_LIMIT = 2 ** 12

type Op = 'wreq' | 'sreq' | 'creq'

const WREQ = code('wreq')
const OPS = new Map<number, Op>([
  [WREQ, 'wreq'],
  [code('sreq'), 'sreq'],
  [code('creq'), 'creq'],
])

export interface Request {
  op: Op
  /** wreq: offset on the disk, in bytes. */
  position: number
  /** wreq: valid only until the reader is used again. */
  data: Buffer
}

const NOTHING = Buffer.alloc(0)

/** Writes the header of a write of `length` bytes, whole sectors, at `position` of the disk. */
export function encodeWriteHeader(
  into: Buffer,
  at: number,
  position: number,
  length: number,
): void {
  const sector = position / SECTOR
  into.writeUInt32BE(WREQ, at)
  into.writeUInt32LE(length / SECTOR, at + 4)
  into.writeUInt32LE(sector % 2 ** 32, at + 8)
  into.writeUInt32LE(Math.floor(sector / 2 ** 32), at + 12)
}

/** Reads what a primary sends. */
export class RequestReader extends StreamReader<Request> {
  constructor() {
    super(REQUESTS, { op: 'sreq', position: 0, data: NOTHING })
  }
}

/** Reads what a secondary sends: nothing but `done`. */
export class DoneReader extends StreamReader<null> {
  constructor() {
    super(ANSWERS, null)
  }
}

const REQUESTS: Framing<Request> = {
  largest: WRITE_HEADER_SIZE + MOST_TAKEN,
  decode: decodeRequest,
  needed: (bytes, have) => {
    if (have < OP_SIZE) return OP_SIZE
    return have < WRITE_HEADER_SIZE ? WRITE_HEADER_SIZE : WRITE_HEADER_SIZE + dataLength(bytes, 0)
  },
}

const DONE = code('done')

const ANSWERS: Framing<null> = {
  largest: OP_SIZE,
  decode: (bytes, start, end) => {
    if (end - start < OP_SIZE) return -1
    if (bytes.readUInt32BE(start) !== DONE)
      throw broken(`${shown(bytes, start)} is no answer of a secondary`)
    return start + OP_SIZE
  },
  needed: () => OP_SIZE,
}

function decodeRequest(bytes: Buffer, start: number, end: number, out: Request): number {
  const have = end - start
  if (have < OP_SIZE) return -1
  const op = OPS.get(bytes.readUInt32BE(start))
  if (op === undefined)
    throw broken(`${shown(bytes, start)} is no request; see that the primary has wire=blktap2`)
  let behind = start + OP_SIZE
  if (op === 'wreq') {
    if (have < WRITE_HEADER_SIZE) return -1
    const data = start + WRITE_HEADER_SIZE
    behind = data + dataLength(bytes, start)
    const high = bytes.readUInt32LE(start + 12)
    if (high >= HIGH_LIMIT) throw broken('a write beyond the end of any disk')
    if (behind > end) return -1
    out.position = (high * 2 ** 32 + bytes.readUInt32LE(start + 8)) * SECTOR
    out.data = bytes.subarray(data, behind)
  }
  out.op = op
  return behind
}

function dataLength(bytes: Buffer, start: number): number {
  const length = bytes.readUInt32LE(start + 4) * SECTOR
  if (length > MOST_TAKEN) throw broken(`a write of ${length} bytes is more than ${MOST_TAKEN}`)
  return length
}

function code(letters: string): number {
  return Buffer.from(letters, 'latin1').readUInt32BE()
}

/** An op as a message shows it, whatever bytes it has. */
function shown(bytes: Buffer, start: number): string {
  return JSON.stringify(bytes.toString('latin1', start, start + OP_SIZE))
}

function broken(why: string): Fault {
  return new Fault('PROTOCOL', `broken blktap2 stream: ${why}`)
}
