/**
 * Cuts the byte stream from a server into simple replies and structured chunks (sections "Simple reply message" and
 * "Structured reply chunk message"). Pure: the client says where data goes and judges what it means.
 *
 * Invariants:
 *  - How the bytes are cut makes no difference.
 *  - Data is written only to the memory that the sink gave for it, and reported once all of it is there.
 *  - What a server can make us keep besides is bounded (MAX_CONTENT).
 */

import { MiB } from '../core/units.ts'
import {
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE,
  STRUCTURED_CHUNK_SIZE,
  readOffset,
} from './protocol.ts'

export interface ReplySink {
  /**
   * A simple reply's header. Gives the memory for the data that follows (empty when none does), or undefined when
   * nothing was asked under this cookie, which ends the stream.
   */
  begin(error: number, cookieHigh: number, cookieLow: number): Buffer | undefined
  /** The simple reply that began last is complete. */
  complete(): void
  /** A chunk's header. False when nothing was asked under this cookie, which ends the stream. */
  beginChunk(cookieHigh: number, cookieLow: number): boolean
  /** Memory for the data of the chunk that began last, or undefined when it has no business there, which ends the stream. */
  chunkData(offset: number, length: number): Buffer | undefined
  /** The content of a chunk of another type, for this call only. Gives what is wrong with it, which ends the stream. */
  chunkContent(type: number, content: Buffer): string | undefined
  /** The chunk that began last is complete. Gives what is wrong with the reply, if it is the last chunk. */
  completeChunk(done: boolean): string | undefined
}

/** Data at least this long, in bytes, is worth a read of its own. */
const WORTH_A_READ = 16 * 1024
/** Bytes of a chunk that carries no data: extents, or an error and its message. */
const MAX_CONTENT = 1 * MiB
/** The offset before the data of a chunk. */
const OFFSET_SIZE = 8
const NOTHING = Buffer.alloc(0)

type Expecting = 'header' | 'data' | 'chunkOffset' | 'chunkData' | 'chunkContent'

export class ReplyDecoder {
  readonly #sink: ReplySink
  readonly #structured: boolean
  readonly #partial = Buffer.alloc(STRUCTURED_CHUNK_SIZE)
  /** A simple header's part of it, which is all of one, or the beginning of a chunk's. */
  readonly #header = this.#partial.subarray(0, SIMPLE_REPLY_SIZE)
  readonly #offset = this.#partial.subarray(0, OFFSET_SIZE)
  #expecting: Expecting = 'header'
  /** What is being filled, and how much of it is. */
  #target: Buffer
  #count = 0
  /** Of the chunk being received. */
  #type = 0
  #length = 0
  #done = false
  #violation: string | undefined
  #lastWasLarge = false

  /** @param structured whether the server may send chunks */
  constructor(sink: ReplySink, structured = false) {
    this.#sink = sink
    this.#structured = structured
    this.#target = this.#header
  }

  /** Why the connection must be given up, once the server has broken the protocol. */
  get violation(): string | undefined {
    return this.#violation
  }

  /** The last reply was large, so the next one probably is. */
  get expectsLargeData(): boolean {
    return this.#lastWasLarge
  }

  /** Where the next bytes can be read to directly; report them to `filled`. */
  get destination(): Buffer | undefined {
    const isData = this.#expecting === 'data' || this.#expecting === 'chunkData'
    if (!isData || this.#target.length - this.#count < WORTH_A_READ) return undefined
    return this.#target.subarray(this.#count)
  }

  filled(count: number): void {
    this.#count += count
    if (this.#count === this.#target.length) this.#filledAll()
  }

  /** Decodes all of `bytes` up to `to`, unless the protocol is broken. */
  push(bytes: Buffer, to: number): void {
    let at = 0
    while (at < to && this.#violation === undefined) {
      if (this.#expecting === 'header' && this.#count === 0 && to - at >= STRUCTURED_CHUNK_SIZE) {
        at += this.#readHeader(bytes, at)
        continue
      }
      const taken = bytes.copy(this.#target, this.#count, at, to)
      at += taken
      this.filled(taken)
    }
  }

  #filledAll(): void {
    switch (this.#expecting) {
      case 'header':
        if (this.#count === SIMPLE_REPLY_SIZE && this.#isChunk(this.#partial, 0)) {
          this.#target = this.#partial
          return
        }
        this.#readHeader(this.#partial, 0)
        return
      case 'data':
        this.#expectHeader()
        this.#sink.complete()
        return
      case 'chunkOffset':
        this.#chunkData(readOffset(this.#target, 0))
        return
      case 'chunkData':
        this.#endChunk(undefined)
        return
      case 'chunkContent':
        this.#endChunk(this.#sink.chunkContent(this.#type, this.#target))
    }
  }

  #isChunk(bytes: Buffer, at: number): boolean {
    return this.#structured && bytes.readUInt32BE(at) === NBD_STRUCTURED_REPLY_MAGIC
  }

  /** @returns how many bytes the header has */
  #readHeader(bytes: Buffer, at: number): number {
    if (this.#isChunk(bytes, at)) {
      this.#chunkHeader(bytes, at)
      return STRUCTURED_CHUNK_SIZE
    }
    this.#simpleHeader(bytes, at)
    return SIMPLE_REPLY_SIZE
  }

  #simpleHeader(bytes: Buffer, at: number): void {
    if (bytes.readUInt32BE(at) !== NBD_SIMPLE_REPLY_MAGIC) {
      this.#violation = 'a reply without its magic'
      return
    }
    const error = bytes.readUInt32BE(at + 4)
    const target = this.#sink.begin(error, bytes.readUInt32BE(at + 8), bytes.readUInt32BE(at + 12))
    if (target === undefined) {
      this.#violation = 'a reply to something not asked'
      return
    }
    this.#lastWasLarge = target.length >= WORTH_A_READ
    if (target.length > 0) return this.#expect('data', target)
    this.#expectHeader()
    this.#sink.complete()
  }

  /** magic u32, flags u16, type u16, cookie u64, length u32. */
  #chunkHeader(bytes: Buffer, at: number): void {
    this.#done = (bytes.readUInt16BE(at + 4) & NBD_REPLY_FLAG_DONE) !== 0
    this.#type = bytes.readUInt16BE(at + 6)
    this.#length = bytes.readUInt32BE(at + 16)
    this.#lastWasLarge = false
    if (!this.#sink.beginChunk(bytes.readUInt32BE(at + 8), bytes.readUInt32BE(at + 12))) {
      this.#violation = 'a reply to something not asked'
    } else if (this.#type === NBD_REPLY_TYPE_OFFSET_DATA) {
      if (this.#length <= OFFSET_SIZE) this.#violation = 'a chunk of data without data'
      else this.#expect('chunkOffset', this.#offset)
    } else if (this.#length > MAX_CONTENT) {
      this.#violation = `a chunk of type ${this.#type} with ${this.#length} bytes`
    } else if (this.#length === 0) {
      this.#endChunk(this.#sink.chunkContent(this.#type, NOTHING))
    } else {
      this.#expect('chunkContent', Buffer.allocUnsafe(this.#length))
    }
  }

  #chunkData(offset: number): void {
    const length = this.#length - OFFSET_SIZE
    const target = this.#sink.chunkData(offset, length)
    if (target === undefined) {
      this.#violation = 'a chunk of data that was not asked for'
      return
    }
    this.#lastWasLarge = length >= WORTH_A_READ
    this.#expect('chunkData', target)
  }

  #endChunk(objection: string | undefined): void {
    this.#expectHeader()
    this.#violation ??= objection ?? this.#sink.completeChunk(this.#done)
  }

  #expectHeader(): void {
    this.#expect('header', this.#header)
  }

  #expect(expecting: Expecting, target: Buffer): void {
    this.#expecting = expecting
    this.#target = target
    this.#count = 0
  }
}
