/**
 * Brings the bytes of a socket to their receiver, where possible without a copy.
 *
 * In place: the receiver names the memory for each read, so that a large payload lands where it belongs. Node offers
 * this (`onread`) for sockets that a program creates; an accepted socket gets it by moving its handle to a new
 * net.Socket. Copying: plain 'data' events, for streams without a handle of their own and wherever the move fails.
 */

import net from 'node:net'

import { KiB } from '../core/units.ts'

export type TransportMode = 'in-place' | 'copying'

export interface Receiver {
  /** Memory for the next read. Asked before the first read and after each `received`. */
  target(): Buffer
  /** `count` bytes at the start of `bytes`, which is `target()`'s memory or, in copying mode, the receiver's to keep. */
  received(bytes: Buffer, count: number): void
}

/**
 * Shared by every connection: bytes read into it are used up, or copied, before the next read of any socket. Large
 * enough for a burst of small writes in one read.
 */
export const SCRATCH = Buffer.allocUnsafeSlow(256 * KiB)
/** For reading a header and little more, so that the payload behind it can be read in place. */
export const SMALL_SCRATCH = SCRATCH.subarray(0, 512)

/** What net.Socket accepts beyond its documented options, and holds beyond its documented properties. */
type HandleOptions = net.SocketConstructorOpts & { handle: object; onread: net.OnReadOpts }
interface HandleHolder {
  _handle: object | null
}

/** The `onread` option that serves `receiver`. */
export function readInto(receiver: Receiver): net.OnReadOpts {
  return {
    buffer: () => receiver.target(),
    callback: (count, bytes) => {
      receiver.received(bytes as Buffer, count)
      return true
    },
  }
}

/**
 * Takes over a socket accepted with `pauseOnConnect`. Use the returned socket only; it is half-open: the receiver's
 * owner ends it. Reading starts at once in place, and in copying mode when the caller resumes it.
 */
export function adoptSocket(
  accepted: net.Socket,
  receiver: Receiver,
  mode: TransportMode,
): net.Socket {
  const holder = accepted as unknown as HandleHolder
  const handle = holder._handle
  if (mode === 'copying' || typeof handle !== 'object' || handle === null) {
    accepted.on('data', (chunk: Buffer) => receiver.received(chunk, chunk.length))
    return accepted
  }
  holder._handle = null
  accepted.destroy()
  const options: HandleOptions = { handle, allowHalfOpen: true, onread: readInto(receiver) }
  return new net.Socket(options)
}
