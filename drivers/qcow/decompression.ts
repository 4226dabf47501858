/**
 * The content of compressed clusters. What comes out is bounded before anything is unpacked: never more than a cluster.
 *
 * The end of the data is not stored, only the sector that it is in: what follows it is somebody else's, and ignored.
 */

import { createInflateRaw, constants } from 'node:zlib'

import { Decompress as ZstdStream } from 'fzstd'

import { Fault } from '../../core/fault.ts'
import { MiB } from '../../core/units.ts'

/** What RFC 8878 recommends that every reader supports; no cluster needs more. */
const MOST_WINDOW = 8 * MiB

type Decompress = (compressed: Buffer, size: number) => Promise<Buffer>

/** @returns `size` bytes. @throws Fault IO when the data does not give that many */
export const inflateCluster: Decompress = (compressed, size) =>
  new Promise((resolve, reject) => {
    const content = Buffer.alloc(size)
    let filled = 0
    const stream = createInflateRaw({ finishFlush: constants.Z_SYNC_FLUSH, chunkSize: 64 * 1024 })
    const settle = (reason?: unknown): void => {
      stream.removeAllListeners()
      stream.on('error', () => undefined)
      stream.destroy()
      if (filled === size) resolve(content)
      else reject(unreadable(filled, size, reason))
    }
    stream.on('data', (chunk: Buffer) => {
      filled += chunk.copy(content, filled)
      if (filled === size) settle()
    })
    stream.on('end', () => settle())
    stream.on('error', (error) => settle(error))
    stream.end(compressed)
  })

/** As inflateCluster(), for zstd; in pieces, so that a frame that announces more than a cluster costs no more. */
export const decompressZstd: Decompress = (compressed, size) => {
  if (zstdWindow(compressed) > MOST_WINDOW)
    return Promise.reject(unreadable(0, size, new Error('the frame asks for too much memory')))
  const content = Buffer.alloc(size)
  let filled = 0
  const stream = new ZstdStream((chunk) => {
    filled += Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length).copy(content, filled)
  })
  let reason: unknown
  try {
    for (let at = 0; at < compressed.length && filled < size; at += 512)
      stream.push(compressed.subarray(at, at + 512), false)
  } catch (error) {
    reason = error // What follows the frame is no data of this cluster, and may well be no frame.
  }
  return filled === size
    ? Promise.resolve(content)
    : Promise.reject(unreadable(filled, size, reason))
}

/** Bytes that a frame makes its reader keep (RFC 8878, section 3.1.1.1); 0 where it is no frame. */
function zstdWindow(frame: Buffer): number {
  if (frame.length < 14 || frame.readUInt32LE(0) !== 0xfd2f_b528) return 0
  const descriptor = frame.readUInt8(4)
  const singleSegment = (descriptor & 0x20) !== 0
  if (!singleSegment) {
    const window = frame.readUInt8(5)
    const base = 2 ** (10 + (window >>> 3))
    return base + (base / 8) * (window & 7)
  }
  const sizeAt = 5 + ([0, 1, 2, 4][descriptor & 3] ?? 0)
  switch (descriptor >>> 6) {
    case 0:
      return frame.readUInt8(sizeAt)
    case 1:
      return frame.readUInt16LE(sizeAt) + 256
    case 2:
      return frame.readUInt32LE(sizeAt)
    default:
      return Number.POSITIVE_INFINITY
  }
}

function unreadable(filled: number, size: number, cause: unknown): Fault {
  return new Fault('IO', `a compressed cluster gives ${filled} instead of ${size} bytes`, { cause })
}
