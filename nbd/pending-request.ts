/** A request of a connection between its admission and the device's answer; recycled, so that none is allocated. */

import type { PoolSlot } from '../core/buffer-pool.ts'
import type { RequestHeader } from './decoder.ts'
import type { Objection } from './request-check.ts'
import type { Piece } from './sparse-read.ts'

export class PendingRequest {
  type = 0
  flags = 0
  cookieHigh = 0
  cookieLow = 0
  offsetHigh = 0
  offsetLow = 0
  offset = 0
  length = 0
  payload = 0
  slot: PoolSlot | undefined
  /** Of a READ that left out holes. */
  pieces: Piece[] | undefined
  /** Bytes of the reply of a BLOCK_STATUS. */
  replyLength = 0
  readonly succeed: () => void
  readonly fail: (error: unknown) => void

  constructor(
    done: (pending: PendingRequest, failure: Objection | undefined) => void,
    failureFor: (error: unknown) => Objection,
  ) {
    this.succeed = () => done(this, undefined)
    this.fail = (error) => done(this, failureFor(error))
  }

  take(header: RequestHeader): void {
    this.type = header.type
    this.flags = header.flags
    this.cookieHigh = header.cookieHigh
    this.cookieLow = header.cookieLow
    this.offsetHigh = header.offsetHigh
    this.offsetLow = header.offsetLow
    this.offset = header.offset
    this.length = header.length
    this.payload = header.payload
    this.pieces = undefined
  }
}
