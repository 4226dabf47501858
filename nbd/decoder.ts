/**
 * Cuts the byte stream of the transmission phase into requests. Pure: it reads no socket and keeps no queue.
 *
 * Invariants:
 *  - How the bytes are cut makes no difference to the requests that come out.
 *  - The stream stays in step: the payload of a refused request is drained before the next header is read.
 *  - Nothing is decoded while the sink says WAIT; the bytes not consumed stay the caller's.
 *  - A payload is written to memory that the sink gave, never beyond its length.
 */

import {
  EXTENDED_REQUEST_HEADER_SIZE,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_WRITE,
  NBD_EXTENDED_REQUEST_MAGIC,
  NBD_REQUEST_MAGIC,
  REQUEST_HEADER_SIZE,
  readOffset,
} from './protocol.ts'

/** One request's header. The decoder owns a single one and overwrites it: copy what must last. */
export class RequestHeader {
  flags = 0
  type = 0
  /** The client's 64-bit cookie, opaque, as two halves. */
  cookieHigh = 0
  cookieLow = 0
  /** The offset as it came, as two halves: an extended reply repeats it. */
  offsetHigh = 0
  offsetLow = 0
  /** Bytes; both saturated at the largest safe integer. */
  offset = 0
  length = 0
  /** Bytes that follow the header. */
  payload = 0
}

/** Compact headers, or extended ones (EXTENDED_HEADERS extension, "Request message"). */
export type RequestStyle = 'compact' | 'extended'

/** Verdicts of RequestSink.admit besides an NBD error number. */
export const ADMITTED = 0
export const WAIT = -1
export type Verdict = number

export interface RequestSink {
  /**
   * Decides about a request whose payload, if it has one, has not been read: ADMITTED; WAIT (asked again at the next
   * push); or the NBD error to refuse it with. An ADMITTED request is executed, unless the connection is lost first.
   */
  admit(header: RequestHeader): Verdict
  /** Memory of exactly `header.payload` bytes for the payload of the request just admitted. */
  payload(header: RequestHeader): Buffer
  /** The admitted request, its payload in place. False ends the stream (DISC). */
  execute(header: RequestHeader): boolean
  /** The request that admit() refused, its payload drained. */
  refuse(header: RequestHeader, error: number): void
}

type Phase = 'header' | 'admission' | 'payload' | 'drain' | 'ended'

/** Payloads at least this long, in bytes, are worth a read of their own. */
const WORTH_A_READ = 16 * 1024
const NO_MEMORY = Buffer.alloc(0)

export class RequestDecoder {
  readonly #sink: RequestSink
  /** A payload longer than this, in bytes, cannot be drained in reasonable time: it breaks the connection. */
  readonly #maxDrain: number
  readonly #header = new RequestHeader()
  readonly #extended: boolean
  readonly #magic: number
  readonly #partial: Buffer
  #phase: Phase = 'header'
  /** Bytes there of the header or the payload, or still to come of a drained payload. */
  #count = 0
  #target: Buffer = NO_MEMORY
  #error = ADMITTED
  #violation: string | undefined
  #lastWasLarge = false

  constructor(sink: RequestSink, maxDrain: number, style: RequestStyle = 'compact') {
    this.#sink = sink
    this.#maxDrain = maxDrain
    this.#extended = style === 'extended'
    this.#magic = this.#extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC
    this.#partial = Buffer.alloc(
      this.#extended ? EXTENDED_REQUEST_HEADER_SIZE : REQUEST_HEADER_SIZE,
    )
  }

  /** Why the client must be dropped, once it has broken the protocol. */
  get violation(): string | undefined {
    return this.#violation
  }

  /** No further request will be decoded: DISC was seen, or the protocol broken. */
  get ended(): boolean {
    return this.#phase === 'ended'
  }

  /** The sink said WAIT: push again, with an empty range if need be, when it may have changed its mind. */
  get waiting(): boolean {
    return this.#phase === 'admission'
  }

  /** More bytes can be decoded. */
  get ready(): boolean {
    return !this.waiting && !this.ended
  }

  /** A payload has been read in part: memory is held until the client sends the rest. */
  get midPayload(): boolean {
    return this.#phase === 'payload'
  }

  /** The last payload was large, so the next one probably is: read little more than a header ahead of it. */
  get expectsLargePayload(): boolean {
    return this.#lastWasLarge
  }

  /** Where the next bytes can be read to directly, when they are a long payload's; report them to `filled`. */
  get destination(): Buffer | undefined {
    if (this.#phase !== 'payload') return undefined
    if (this.#target.length - this.#count < WORTH_A_READ) return undefined
    return this.#target.subarray(this.#count)
  }

  /** `count` bytes were read straight into `destination`. */
  filled(count: number): void {
    this.#count += count
    if (this.#count === this.#target.length) this.#execute()
  }

  /** Decodes from `from` up to `to`; gives the position reached, less than `to` only on WAIT or at the end. */
  push(bytes: Buffer, from: number, to: number): number {
    let at = from
    while (this.#phase !== 'ended') {
      if (this.#phase === 'admission') {
        if (!this.#admit()) return at
        continue
      }
      if (at === to) return at
      at = this.#advance(bytes, at, to)
    }
    return at
  }

  #advance(bytes: Buffer, at: number, to: number): number {
    switch (this.#phase) {
      case 'header':
        return this.#takeHeader(bytes, at, to)
      case 'payload': {
        const taken = bytes.copy(this.#target, this.#count, at, to)
        this.#count += taken
        if (this.#count === this.#target.length) this.#execute()
        return at + taken
      }
      case 'drain': {
        const taken = Math.min(this.#count, to - at)
        this.#count -= taken
        if (this.#count === 0) this.#refuse()
        return at + taken
      }
      case 'admission':
      case 'ended':
        return at
    }
  }

  #takeHeader(bytes: Buffer, at: number, to: number): number {
    const size = this.#partial.length
    if (this.#count === 0 && to - at >= size) {
      this.#parseHeader(bytes, at)
      return at + size
    }
    const taken = bytes.copy(this.#partial, this.#count, at, to)
    this.#count += taken
    if (this.#count === size) this.#parseHeader(this.#partial, 0)
    return at + taken
  }

  /** magic u32, flags u16, type u16, cookie u64, offset u64, length u32, or u64 in an extended header. */
  #parseHeader(bytes: Buffer, at: number): void {
    this.#count = 0
    if (bytes.readUInt32BE(at) !== this.#magic) return this.#break('a request without its magic')
    const header = this.#header
    header.flags = bytes.readUInt16BE(at + 4)
    header.type = bytes.readUInt16BE(at + 6)
    header.cookieHigh = bytes.readUInt32BE(at + 8)
    header.cookieLow = bytes.readUInt32BE(at + 12)
    header.offsetHigh = bytes.readUInt32BE(at + 16)
    header.offsetLow = bytes.readUInt32BE(at + 20)
    header.offset = readOffset(bytes, at + 16)
    header.length = this.#extended ? readOffset(bytes, at + 24) : bytes.readUInt32BE(at + 24)
    const carries = this.#extended
      ? (header.flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0
      : header.type === NBD_CMD_WRITE
    header.payload = carries ? header.length : 0
    if (header.payload > this.#maxDrain)
      return this.#break(`a payload of ${header.length} bytes for command ${header.type}`)
    this.#phase = 'admission'
  }

  /** False while the sink wants to wait. */
  #admit(): boolean {
    const header = this.#header
    const verdict = this.#sink.admit(header)
    if (verdict === WAIT) return false
    this.#error = verdict
    const { payload } = header
    this.#lastWasLarge = payload >= WORTH_A_READ
    if (verdict !== ADMITTED) {
      this.#phase = 'drain'
      this.#count = payload
      if (payload === 0) this.#refuse()
    } else if (payload === 0) {
      this.#execute()
    } else {
      this.#phase = 'payload'
      this.#target = this.#sink.payload(header)
    }
    return true
  }

  #execute(): void {
    this.#next()
    if (!this.#sink.execute(this.#header)) this.#phase = 'ended'
  }

  #refuse(): void {
    this.#next()
    this.#sink.refuse(this.#header, this.#error)
  }

  #next(): void {
    this.#phase = 'header'
    this.#count = 0
    this.#target = NO_MEMORY
  }

  #break(violation: string): void {
    this.#phase = 'ended'
    this.#violation = violation
  }
}
