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
import type { BlockDevice } from '../core/block-device.ts'
import type { PoolSlot } from '../core/buffer-pool.ts'
import { Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import { isPromise, then, type MaybePromise } from '../core/maybe-promise.ts'
import { readFilter, statusMemory, writeStatus } from './block-status.ts'
import { ADMITTED, WAIT, type RequestHeader, type RequestSink, type Verdict } from './decoder.ts'
import type { Export } from './export.ts'
import type { MemoryClaim, MemoryShare } from './memory-share.ts'
import type { MetaContext } from './meta-context.ts'
import { PendingRequest } from './pending-request.ts'
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_ESHUTDOWN,
  errnoOf,
} from './protocol.ts'
import type { ReplyFormat } from './reply-format.ts'
import { ReplyQueue, type ReplyQueueOwner, type ReplySocket } from './reply-queue.ts'
import { objectionTo, requestFlags, type Objection, type Terms } from './request-check.ts'
import { SparseReader, chunksOf } from './sparse-read.ts'
import type { Wakefulness } from './wakefulness.ts'

export interface Window {
  readonly requests: number
  readonly bytes: number
}

export interface TransmissionOptions {
  readonly chosen: Export
  readonly format: ReplyFormat
  /** What BLOCK_STATUS may ask for. */
  readonly contexts: readonly MetaContext[]
  readonly share: MemoryShare
  readonly claim: MemoryClaim
  readonly window: Window
  readonly socket: ReplySocket
  readonly logger: Logger
  readonly wakefulness: Wakefulness
  /** Something has finished: a request that had to wait may be admitted now, a closing connection may be done. */
  readonly onProgress: () => void
}

/** Reads up to this length, in bytes, have header and data in one buffer; longer ones keep their slot's alignment. */
const ONE_BUFFER = 32 * 1024
/** Where the data is in that buffer, the header directly before it: on a cache line of its own, whatever the format. */
const DATA_AT = 64

const STOPPING: Objection = { error: NBD_ESHUTDOWN, reason: 'the server is shutting down' }
const NO_ROOM: Objection = { error: NBD_ENOMEM, reason: 'no memory for a request of this length' }

export class Transmission implements RequestSink, ReplyQueueOwner {
  readonly #device: BlockDevice
  readonly #options: TransmissionOptions
  readonly #terms: Terms
  readonly #sparse: SparseReader
  readonly #replies: ReplyQueue
  #idle: PendingRequest[] = []
  /** The admitted request whose payload is being read. */
  #receiving: PendingRequest | undefined
  /** Why the request whose payload is being drained is refused. */
  #refusing: Objection | undefined
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
    const { chosen, format, contexts, socket, window } = options
    this.#device = chosen.device
    this.#terms = { device: chosen.device, format, contexts }
    this.#sparse = new SparseReader(chosen.device)
    this.#replies = new ReplyQueue(socket, this, format, window.requests)
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
    this.#options.chosen.hold?.forget(this.#options.onProgress)
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
    if (this.#heldBack(header)) return WAIT
    if (header.type === NBD_CMD_DISC) return ADMITTED
    const { window, claim, share } = this.#options
    if (this.#inFlight + this.#replies.undrained >= window.requests) return WAIT
    const length = this.#memoryFor(header)
    const objection = this.#objection(header, length)
    if (objection !== undefined) {
      this.#inFlight += 1
      this.#refusing = objection
      return objection.error
    }
    const pending = this.#idle.pop() ?? new PendingRequest(this.#finishLater, this.#failureFor)
    if (length > 0) {
      const tooMuch = claim.held > 0 && claim.held + length > window.bytes
      const slot = tooMuch ? undefined : share.acquire(claim, length)
      if (slot === undefined) {
        this.#idle.push(pending)
        return WAIT
      }
      pending.slot = slot
    }
    this.#inFlight += 1
    this.#receiving = pending
    return ADMITTED
  }

  payload(header: RequestHeader): Buffer {
    const slot = this.#receiving?.slot
    assert(slot !== undefined, 'a request with a payload is admitted with memory')
    return slot.first(header.payload)
  }

  execute(header: RequestHeader): boolean {
    if (header.type === NBD_CMD_DISC) return false
    const pending = this.#receiving
    assert(pending !== undefined, 'an executed request was admitted')
    this.#receiving = undefined
    pending.take(header)
    this.#executing += 1
    this.requests += 1
    this.steps += 1
    let failure: Objection | undefined
    try {
      const result = this.#issue(pending)
      if (isPromise(result)) {
        void result.then(pending.succeed, pending.fail)
        return true
      }
    } catch (thrown) {
      failure = this.#failureFor(thrown)
    }
    this.#finish(pending, failure)
    return true
  }

  refuse(header: RequestHeader, error: number): void {
    this.#inFlight -= 1
    this.requests += 1
    this.errors += 1
    this.steps += 1
    this.#replies.addError(header, error, this.#refusing?.reason ?? '')
    this.#refusing = undefined
  }

  drained(count: number, slots: readonly PoolSlot[]): void {
    for (const slot of slots) this.#release(slot)
    if (count > 0) this.steps += 1
    if (this.#closed) return
    if (count === 1 && this.quiet) this.#options.wakefulness.answered()
    this.#options.onProgress()
  }

  /** While the export is paused a request waits in the socket, where it takes no memory of the server's. */
  #heldBack({ type }: RequestHeader): boolean {
    const { hold } = this.#options.chosen
    if (hold?.held !== true || type === NBD_CMD_DISC || this.#stopping) return false
    hold.whenLetGo(this.#options.onProgress)
    return true
  }

  /** Why a request must not reach the device; `memory` is what it would need. */
  #objection(header: RequestHeader, memory: number): Objection | undefined {
    if (this.#stopping) return STOPPING
    const objection = objectionTo(header, this.#terms)
    if (objection !== undefined) return objection
    return memory > 0 && this.#options.share.exceedsPool(memory) ? NO_ROOM : undefined
  }

  /** Bytes of pool memory that a request takes. */
  #memoryFor({ type, flags, length }: RequestHeader): number {
    switch (type) {
      case NBD_CMD_READ:
        return length > 0 && length <= ONE_BUFFER ? DATA_AT + length : length
      case NBD_CMD_WRITE:
        return length
      case NBD_CMD_BLOCK_STATUS: {
        const { format, contexts } = this.#terms
        if (format.kind === 'simple') return 0
        return statusMemory(format, contexts, (flags & NBD_CMD_FLAG_REQ_ONE) !== 0)
      }
      default:
        return 0
    }
  }

  #issue(pending: PendingRequest): MaybePromise<void> {
    const { type, offset, length, slot } = pending
    if (type === NBD_CMD_FLUSH) return this.#device.flush()
    // The specification leaves a length of 0 open; it is granted without troubling the device.
    if (length === 0) return undefined
    switch (type) {
      case NBD_CMD_READ:
        return this.#read(pending)
      case NBD_CMD_WRITE:
        assert(slot !== undefined, 'a WRITE has memory')
        return this.#device.write(slot.first(length), offset, requestFlags(pending.flags))
      case NBD_CMD_TRIM:
        return this.#device.trim(offset, length, requestFlags(pending.flags))
      case NBD_CMD_CACHE:
        return this.#device.cache?.(offset, length)
      case NBD_CMD_BLOCK_STATUS:
        return this.#blockStatus(pending)
      default:
        assert(type === NBD_CMD_WRITE_ZEROES, 'only known commands are admitted')
        return this.#device.zero(offset, length, requestFlags(pending.flags))
    }
  }

  #read(pending: PendingRequest): MaybePromise<void> {
    const { flags, offset, length, slot } = pending
    assert(slot !== undefined, 'a READ has memory')
    const into = slot.part(length > ONE_BUFFER ? 0 : DATA_AT, length)
    const whole = this.#terms.format.kind === 'simple' || (flags & NBD_CMD_FLAG_DF) !== 0
    if (whole || !this.#sparse.worthALook(length)) return this.#device.read(into, offset)
    return then(this.#sparse.read(into, offset), (pieces) => {
      pending.pieces = pieces
    })
  }

  #blockStatus(pending: PendingRequest): MaybePromise<void> {
    const { offset, slot, payload, flags } = pending
    const { format, contexts } = this.#terms
    assert(slot !== undefined && format.kind !== 'simple', 'a BLOCK_STATUS has memory for chunks')
    const whole = { length: pending.length, contexts }
    const chosen = payload === 0 ? whole : readFilter(slot.first(payload), contexts)
    if (chosen === undefined || chosen.length === 0) {
      throw new Fault('INVALID', 'the payload is no choice among the negotiated metadata contexts')
    }
    const one = (flags & NBD_CMD_FLAG_REQ_ONE) !== 0
    const query = { ...chosen, asked: pending, at: offset, one }
    return then(writeStatus(format, this.#device, query, slot.bytes), (replyLength) => {
      pending.replyLength = replyLength
    })
  }

  /** The device has answered: queues the reply, or, on a closed connection, only cleans up. */
  #finish(pending: PendingRequest, failure: Objection | undefined): void {
    const { slot } = pending
    pending.slot = undefined
    this.#inFlight -= 1
    this.#executing -= 1
    this.#idle.push(pending)
    if (failure !== undefined) this.errors += 1
    if (this.#closed) {
      if (slot !== undefined) this.#release(slot)
    } else if (failure !== undefined) {
      if (slot !== undefined) this.#release(slot)
      this.#replies.addError(pending, failure.error, failure.reason)
    } else {
      this.#answer(pending, slot)
    }
  }

  /** Queues the reply of a request that succeeded. */
  #answer(pending: PendingRequest, slot: PoolSlot | undefined): void {
    const { type, length } = pending
    if (slot !== undefined && type === NBD_CMD_READ) {
      this.bytesRead += length
      this.#answerRead(pending, slot)
    } else if (slot !== undefined && type === NBD_CMD_BLOCK_STATUS) {
      this.#replies.addWhole(slot.first(pending.replyLength), slot)
    } else {
      if (slot !== undefined) this.#release(slot)
      if (type === NBD_CMD_WRITE) this.bytesWritten += length
      this.#replies.addDone(pending)
    }
  }

  #answerRead(pending: PendingRequest, slot: PoolSlot): void {
    const { length, offset, pieces } = pending
    const { format } = this.#terms
    if (pieces !== undefined && format.kind !== 'simple') {
      this.#replies.addPieces(chunksOf(format, pending, offset, slot.bytes, pieces), slot)
    } else if (length > ONE_BUFFER) {
      this.#replies.addHeaderAndData(pending, offset, slot.first(length), slot)
    } else {
      const start = DATA_AT - format.dataHeaderSize
      format.writeDataHeader(slot.bytes, start, pending, offset, length)
      this.#replies.addWhole(slot.part(start, format.dataHeaderSize + length), slot)
    }
  }

  readonly #finishLater = (pending: PendingRequest, failure: Objection | undefined): void => {
    this.#finish(pending, failure)
    if (!this.#closed) this.#replies.schedule()
    this.#options.onProgress()
  }

  readonly #failureFor = (error: unknown): Objection => {
    // A bug of ours must end the process, not be reported to a guest as a bad disk.
    if (error instanceof AssertionFailure) throw error
    if (!(error instanceof Fault)) {
      this.#options.logger.error({ error }, 'a device failed with an error that is not a fault')
      return { error: NBD_EIO, reason: 'the disk failed' }
    }
    const unusual = error.code === 'IO' || error.code === 'NO_SPACE'
    // Once per connection: a failing disk would otherwise write a line for each request.
    if (unusual && this.errors === 0)
      this.#options.logger.warn({ fault: error.message }, 'a request failed')
    // Where it happened is this machine's business: the client is told only what.
    return { error: errnoOf(error.code), reason: error.what }
  }

  #release(slot: PoolSlot): void {
    this.#options.share.release(this.#options.claim, slot)
  }
}
