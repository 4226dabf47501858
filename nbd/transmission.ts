/**
 * Serves the requests of one connection from its device: admission to the window, execution, reply.
 *
 * Invariants:
 *  - `window.requests` bounds the requests admitted whose replies the socket has not taken over; `window.bytes` bounds
 *    the memory they hold (one request may exceed it alone). So a client that never reads its replies is bounded too.
 *  - A slot is given back exactly once: with the reply of a request without data, when the reply's data has left, or,
 *    on a closed connection, when the device is done with it.
 *  - A device that answers at once costs no promise and no closure.
 */

import { AssertionFailure, assert } from '../core/assert.ts'
import { FAST_ZERO, FUA, NO_HOLE, type BlockDevice } from '../core/block-device.ts'
import type { PoolSlot } from '../core/buffer-pool.ts'
import { Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import { isPromise, type MaybePromise } from '../core/maybe-promise.ts'
import { ADMITTED, WAIT, type RequestHeader, type RequestSink, type Verdict } from './decoder.ts'
import { maxPayload, type Export } from './export.ts'
import type { MemoryClaim, MemoryShare } from './memory-share.ts'
import {
  NBD_CMD_DISC,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_EPERM,
  NBD_ESHUTDOWN,
  NBD_OK,
  SIMPLE_REPLY_SIZE,
  errnoOf,
} from './protocol.ts'
import {
  ReplyQueue,
  writeSimpleReply,
  type ReplyQueueOwner,
  type ReplySocket,
} from './reply-queue.ts'

export interface Window {
  readonly requests: number
  readonly bytes: number
}

export interface TransmissionOptions {
  readonly chosen: Export
  readonly share: MemoryShare
  readonly claim: MemoryClaim
  readonly window: Window
  readonly socket: ReplySocket
  readonly logger: Logger
  /** Something has finished: a request that had to wait may be admitted now, a closing connection may be done. */
  readonly onProgress: () => void
}

/** Reads up to this length, in bytes, have header and data in one buffer; longer ones keep their slot's alignment. */
const ONE_BUFFER = 32 * 1024

/** A request between admission and the device's answer; recycled. */
class Pending {
  type = 0
  flags = 0
  cookieHigh = 0
  cookieLow = 0
  offset = 0
  length = 0
  slot: PoolSlot | undefined
  readonly succeed: () => void
  readonly fail: (error: unknown) => void

  constructor(
    done: (pending: Pending, error: number) => void,
    errnoFor: (error: unknown) => number,
  ) {
    this.succeed = () => done(this, NBD_OK)
    this.fail = (error) => done(this, errnoFor(error))
  }
}

export class Transmission implements RequestSink, ReplyQueueOwner {
  readonly #device: BlockDevice
  readonly #options: TransmissionOptions
  readonly #replies: ReplyQueue
  #idle: Pending[] = []
  /** The admitted request whose payload is being read. */
  #receiving: Pending | undefined
  /** Requests admitted or refused whose reply is not queued yet; `#executing` of them are with the device. */
  #inFlight = 0
  #executing = 0
  #stopping = false
  #closed = false
  /** Counters for status. */
  requests = 0
  errors = 0
  bytesRead = 0
  bytesWritten = 0
  /** Grows with each request received whole and each batch of replies taken over. */
  steps = 0

  constructor(options: TransmissionOptions) {
    this.#options = options
    this.#device = options.chosen.device
    this.#replies = new ReplyQueue(options.socket, this, options.window.requests)
  }

  /** Requests with the device. */
  get executing(): number {
    return this.#executing
  }

  /** Replies that the client has not taken. */
  get undrained(): number {
    return this.#replies.undrained
  }

  /** No request is with the device and every reply has left. */
  get quiet(): boolean {
    return this.#executing === 0 && this.#replies.undrained === 0
  }

  /** From now on requests are answered with ESHUTDOWN. */
  stop(): void {
    this.#stopping = true
  }

  /** The socket is closed. Requests with the device finish unanswered and give back their slots then. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    const receiving = this.#receiving
    this.#receiving = undefined
    if (receiving?.slot !== undefined) this.#release(receiving.slot)
    this.#replies.close()
  }

  /** Hands the socket the replies of a run of the decoder, together. */
  flush(): void {
    this.#replies.flush()
  }

  admit(header: RequestHeader): Verdict {
    if (header.type === NBD_CMD_DISC) return ADMITTED
    const { window, claim, share } = this.#options
    if (this.#inFlight + this.#replies.undrained >= window.requests) return WAIT
    const objection = this.#objection(header)
    if (objection !== NBD_OK) {
      this.#inFlight += 1
      return objection
    }
    const pending = this.#idle.pop() ?? new Pending(this.#finishLater, this.#errnoFor)
    if (header.type === NBD_CMD_READ || header.type === NBD_CMD_WRITE) {
      const length = memoryFor(header)
      if (length > 0) {
        const tooMuch = claim.held > 0 && claim.held + length > window.bytes
        const slot = tooMuch ? undefined : share.acquire(claim, length)
        if (slot === undefined) {
          this.#idle.push(pending)
          return WAIT
        }
        pending.slot = slot
      }
    }
    this.#inFlight += 1
    this.#receiving = pending
    return ADMITTED
  }

  payload(header: RequestHeader): Buffer {
    const slot = this.#receiving?.slot
    assert(slot !== undefined, 'a WRITE with a payload is admitted with memory')
    return slot.first(header.length)
  }

  execute(header: RequestHeader): boolean {
    if (header.type === NBD_CMD_DISC) return false
    const pending = this.#receiving
    assert(pending !== undefined, 'an executed request was admitted')
    this.#receiving = undefined
    pending.type = header.type
    pending.flags = header.flags
    pending.cookieHigh = header.cookieHigh
    pending.cookieLow = header.cookieLow
    pending.offset = header.offset
    pending.length = header.length
    this.#executing += 1
    this.requests += 1
    this.steps += 1
    let error = NBD_OK
    try {
      const result = this.#issue(pending)
      if (isPromise(result)) {
        void result.then(pending.succeed, pending.fail)
        return true
      }
    } catch (thrown) {
      error = this.#errnoFor(thrown)
    }
    this.#finish(pending, error)
    return true
  }

  refuse(header: RequestHeader, error: number): void {
    this.#inFlight -= 1
    this.requests += 1
    this.errors += 1
    this.steps += 1
    this.#replies.addHeader(error, header.cookieHigh, header.cookieLow)
  }

  drained(count: number, slots: readonly PoolSlot[]): void {
    for (const slot of slots) this.#release(slot)
    if (count > 0) this.steps += 1
    if (!this.#closed) this.#options.onProgress()
  }

  /** NBD_OK, or the error for a request that must not reach the device; one test per line. */
  #objection(header: RequestHeader): number {
    const { type, flags, length } = header
    const { can, geometry } = this.#device
    if (this.#stopping) return NBD_ESHUTDOWN
    if ((flags & ~allowedFlags(type, this.#device)) !== 0) return NBD_EINVAL
    switch (type) {
      case NBD_CMD_READ:
      case NBD_CMD_WRITE:
        if (type === NBD_CMD_WRITE && geometry.readOnly) return NBD_EPERM
        if (length > maxPayload(this.#device)) return NBD_EINVAL
        return this.#options.share.exceedsPool(memoryFor(header)) ? NBD_ENOMEM : NBD_OK
      case NBD_CMD_FLUSH:
        return can.flush ? NBD_OK : NBD_EINVAL
      case NBD_CMD_TRIM:
        if (geometry.readOnly) return NBD_EPERM
        return can.trim ? NBD_OK : NBD_EINVAL
      case NBD_CMD_WRITE_ZEROES:
        if (geometry.readOnly) return NBD_EPERM
        return can.zero ? NBD_OK : NBD_EINVAL
      default:
        return NBD_EINVAL
    }
  }

  #issue(pending: Pending): MaybePromise<void> {
    const { type, offset, length, slot } = pending
    if (type === NBD_CMD_FLUSH) return this.#device.flush()
    // The specification leaves a length of 0 open; it is granted without troubling the device.
    if (length === 0) return undefined
    const flags = requestFlags(pending.flags)
    switch (type) {
      case NBD_CMD_READ:
        assert(slot !== undefined, 'a READ has memory')
        return this.#device.read(dataOf(slot, length), offset)
      case NBD_CMD_WRITE:
        assert(slot !== undefined, 'a WRITE has memory')
        return this.#device.write(slot.first(length), offset, flags)
      case NBD_CMD_TRIM:
        return this.#device.trim(offset, length, flags)
      default:
        assert(type === NBD_CMD_WRITE_ZEROES, 'only known commands are admitted')
        return this.#device.zero(offset, length, flags)
    }
  }

  /** The device has answered: queues the reply, or, on a closed connection, only cleans up. */
  #finish(pending: Pending, error: number): void {
    const { type, cookieHigh, cookieLow, length, slot } = pending
    pending.slot = undefined
    this.#inFlight -= 1
    this.#executing -= 1
    this.#idle.push(pending)
    if (error !== NBD_OK) this.errors += 1
    if (this.#closed || type !== NBD_CMD_READ || error !== NBD_OK || slot === undefined) {
      if (slot !== undefined) this.#release(slot)
      if (this.#closed) return
      if (type === NBD_CMD_WRITE && error === NBD_OK) this.bytesWritten += length
      this.#replies.addHeader(error, cookieHigh, cookieLow)
      return
    }
    this.bytesRead += length
    if (length > ONE_BUFFER) {
      this.#replies.addHeaderAndData(cookieHigh, cookieLow, slot.first(length), slot)
    } else {
      writeSimpleReply(slot.bytes, 0, NBD_OK, cookieHigh, cookieLow)
      this.#replies.addWhole(slot.first(SIMPLE_REPLY_SIZE + length), slot)
    }
  }

  readonly #finishLater = (pending: Pending, error: number): void => {
    this.#finish(pending, error)
    if (!this.#closed) this.#replies.schedule()
    this.#options.onProgress()
  }

  readonly #errnoFor = (error: unknown): number => {
    // A bug of ours must end the process, not be reported to a guest as a bad disk.
    if (error instanceof AssertionFailure) throw error
    if (!(error instanceof Fault)) {
      this.#options.logger.error({ error }, 'a device failed with an error that is not a fault')
      return NBD_EIO
    }
    const unusual = error.code === 'IO' || error.code === 'NO_SPACE'
    // Once per connection: a failing disk would otherwise write a line for each request.
    if (unusual && this.errors === 0)
      this.#options.logger.warn({ fault: error.message }, 'a request failed')
    return errnoOf(error.code)
  }

  #release(slot: PoolSlot): void {
    this.#options.share.release(this.#options.claim, slot)
  }
}

/** Bytes of pool memory that a READ or WRITE takes. */
function memoryFor({ type, length }: RequestHeader): number {
  return type === NBD_CMD_READ && length > 0 && length <= ONE_BUFFER
    ? length + SIMPLE_REPLY_SIZE
    : length
}

/** Where the data of a READ goes within its slot. */
function dataOf(slot: PoolSlot, length: number): Buffer {
  return length > ONE_BUFFER
    ? slot.first(length)
    : slot.bytes.subarray(SIMPLE_REPLY_SIZE, SIMPLE_REPLY_SIZE + length)
}

/** The command flags that this device's transmission flags allow (section "Command flags"). */
function allowedFlags(type: number, { can }: BlockDevice): number {
  const fua = can.fua ? NBD_CMD_FLAG_FUA : 0
  if (type !== NBD_CMD_WRITE_ZEROES) return fua
  return fua | NBD_CMD_FLAG_NO_HOLE | (can.fastZero ? NBD_CMD_FLAG_FAST_ZERO : 0)
}

function requestFlags(flags: number): number {
  if (flags === 0) return 0
  return (
    ((flags & NBD_CMD_FLAG_FUA) !== 0 ? FUA : 0) |
    ((flags & NBD_CMD_FLAG_NO_HOLE) !== 0 ? NO_HOLE : 0) |
    ((flags & NBD_CMD_FLAG_FAST_ZERO) !== 0 ? FAST_ZERO : 0)
  )
}
