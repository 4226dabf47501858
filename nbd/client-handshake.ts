/**
 * The client's half of the fixed newstyle handshake as a pure machine: bytes in, bytes to send and an outcome out.
 *
 * Invariants:
 *  - How the bytes are cut makes no difference.
 *  - What a server can make us keep is bounded (MAX_REPLY, MAX_LISTED).
 *  - A server that does not know GO is asked again with EXPORT_NAME.
 *  - Where TLS is wanted nothing but the wish for it is said before it is there: a server without it is given up.
 *  - What a server does not know or want of the options before GO (structured replies, the allocation of blocks) is done
 *    without.
 */

import { Fault } from '../core/fault.ts'
import { KiB } from '../core/units.ts'
import {
  IHAVEOPT,
  MAX_PAYLOAD,
  NBDMAGIC,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_LIST,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_MAGIC,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
  isErrorReply,
  readOffset,
} from './protocol.ts'

export interface BlockSizes {
  readonly min: number
  readonly preferred: number
  readonly max: number
}

/** What the server says of the export. */
export interface ExportInfo {
  readonly size: number
  /** Transmission flags, `NBD_FLAG_…`. */
  readonly flags: number
  readonly block: BlockSizes
  readonly description: string
  /** Whether replies come in chunks. */
  readonly structured: boolean
  /** The number under which the server tells the allocation of blocks, where it does. */
  readonly allocationId: number | undefined
}

export interface ListedExport {
  readonly name: string
  readonly description: string
}

export type ClientGoal =
  | {
      readonly kind: 'attach'
      readonly exportName: string
      /** Ask for replies in chunks, and for the allocation of blocks. */
      readonly structured?: boolean
      /** Go on only when the connection is encrypted: see secured(). */
      readonly tls?: boolean
    }
  | { readonly kind: 'list' }

export type ClientOutcome =
  /** The server waits for TLS; secured() goes on with the handshake. */
  | { readonly kind: 'startTls' }
  | { readonly kind: 'attached'; readonly info: ExportInfo }
  | { readonly kind: 'listed'; readonly exports: readonly ListedExport[] }
  | { readonly kind: 'failed'; readonly fault: Fault }

export interface ClientStep {
  readonly consumed: number
  readonly sends: readonly Buffer[]
  readonly outcome: ClientOutcome | undefined
}

type Expecting = 'greeting' | 'replyHeader' | 'replyData' | 'exportNameReply'

/** Bytes of one reply; names, descriptions and messages have at most 4096 each. */
const MAX_REPLY = 64 * KiB
const MAX_LISTED = 100_000
const GREETING_SIZE = 18
const REPLY_HEADER_SIZE = 20
const NOTHING = Buffer.alloc(0)
/** The context of section "`base:allocation` metadata context". */
const ALLOCATION = 'base:allocation'
/** What a client may assume that was told nothing (section "Block size constraints"). */
const ASSUMED_SIZES: BlockSizes = { min: 1, preferred: 4 * KiB, max: MAX_PAYLOAD }

export class ClientHandshake {
  readonly #goal: ClientGoal
  #expecting: Expecting = 'greeting'
  #piece: Buffer = Buffer.alloc(GREETING_SIZE)
  #filled = 0
  #noZeroes = false
  /** The option that was sent last. */
  #option = 0
  #structured = false
  #allocationId: number | undefined
  /** The reply whose data is being gathered. */
  #replyType = 0
  #size: number | undefined
  #flags = 0
  #block = ASSUMED_SIZES
  #description = ''
  #listed: ListedExport[] = []
  #sends: Buffer[] = []
  #outcome: ClientOutcome | undefined

  constructor(goal: ClientGoal) {
    this.#goal = goal
  }

  /** Uses up as much of `input` as the handshake wants. */
  push(input: Buffer): ClientStep {
    this.#sends = []
    let at = 0
    while (this.#outcome === undefined && at < input.length) {
      const taken = input.copy(this.#piece, this.#filled, at)
      this.#filled += taken
      at += taken
      if (this.#filled === this.#piece.length) this.#complete(this.#piece)
    }
    return { consumed: at, sends: this.#sends, outcome: this.#outcome }
  }

  /** TLS is there. @returns what to send on it */
  secured(): readonly Buffer[] {
    this.#sends = []
    this.#outcome = undefined
    if (this.#goal.kind === 'attach')
      this.#begin(this.#goal.exportName, this.#goal.structured === true)
    return this.#sends
  }

  #complete(piece: Buffer): void {
    switch (this.#expecting) {
      case 'greeting':
        this.#greeting(piece)
        return
      case 'replyHeader':
        this.#replyHeader(piece)
        return
      case 'replyData':
        this.#reply(this.#replyType, piece)
        return
      case 'exportNameReply':
        this.#size = readOffset(piece, 0)
        this.#flags = piece.readUInt16BE(8)
        this.#attached()
    }
  }

  #greeting(piece: Buffer): void {
    if (piece.readBigUInt64BE(0) !== NBDMAGIC) return this.#fail('PROTOCOL', 'not an NBD server')
    if (piece.readBigUInt64BE(8) !== IHAVEOPT)
      return this.#fail('NOT_SUPPORTED', 'the server speaks only the oldstyle handshake')
    const theirs = piece.readUInt16BE(16)
    const fixed = (theirs & NBD_FLAG_FIXED_NEWSTYLE) !== 0
    this.#noZeroes = (theirs & NBD_FLAG_NO_ZEROES) !== 0
    const flags = Buffer.alloc(4)
    flags.writeUInt32BE(
      (fixed ? NBD_FLAG_C_FIXED_NEWSTYLE : 0) | (this.#noZeroes ? NBD_FLAG_C_NO_ZEROES : 0),
    )
    this.#sends.push(flags)
    if (this.#goal.kind === 'attach') {
      const { exportName, structured = false, tls = false } = this.#goal
      if (tls && !fixed) this.#fail('NOT_SUPPORTED', 'the server cannot encrypt connections')
      else if (tls) this.#ask(NBD_OPT_STARTTLS, NOTHING)
      else if (!fixed) this.#askByName(exportName)
      else this.#begin(exportName, structured)
    } else if (fixed) {
      this.#ask(NBD_OPT_LIST, NOTHING)
    } else {
      this.#fail('NOT_SUPPORTED', 'the server cannot list its exports')
    }
  }

  #begin(exportName: string, structured: boolean): void {
    if (structured) this.#ask(NBD_OPT_STRUCTURED_REPLY, NOTHING)
    else this.#ask(NBD_OPT_GO, goPayload(exportName))
  }

  #replyHeader(header: Buffer): void {
    if (header.readBigUInt64BE(0) !== NBD_REP_MAGIC)
      return this.#fail('PROTOCOL', 'a handshake reply without its magic')
    if (header.readUInt32BE(8) !== this.#option)
      return this.#fail('PROTOCOL', 'a handshake reply to something not asked')
    const length = header.readUInt32BE(16)
    if (length > MAX_REPLY) return this.#fail('PROTOCOL', `a handshake reply of ${length} bytes`)
    this.#replyType = header.readUInt32BE(12)
    if (length === 0) this.#reply(this.#replyType, NOTHING)
    else this.#gather('replyData', length)
  }

  #reply(type: number, data: Buffer): void {
    if (isErrorReply(type)) return this.#refused(type, data.toString())
    if (type === NBD_REP_ACK) return this.#acknowledged()
    const objection = this.#objection(type, data)
    if (objection === undefined) this.#gather('replyHeader', REPLY_HEADER_SIZE)
    else this.#fail('PROTOCOL', objection)
  }

  /** A reply that others follow. */
  #objection(type: number, data: Buffer): string | undefined {
    if (type === NBD_REP_INFO && this.#option === NBD_OPT_GO) return this.#information(data)
    if (type === NBD_REP_SERVER && this.#option === NBD_OPT_LIST) return this.#server(data)
    if (type === NBD_REP_META_CONTEXT && this.#option === NBD_OPT_SET_META_CONTEXT)
      return this.#context(data)
    return `a handshake reply of unknown type ${type}`
  }

  /** number u32, name. */
  #context(data: Buffer): string | undefined {
    if (data.length < 4) return 'a context without a number'
    if (data.toString('utf8', 4) === ALLOCATION) this.#allocationId = data.readUInt32BE(0)
    return undefined
  }

  /** One information reply; those not asked for are passed over. */
  #information(data: Buffer): string | undefined {
    if (data.length < 2) return 'an information reply without a type'
    switch (data.readUInt16BE(0)) {
      case NBD_INFO_EXPORT:
        if (data.length !== 12) return 'export information of the wrong length'
        this.#size = readOffset(data, 2)
        this.#flags = data.readUInt16BE(10)
        return undefined
      case NBD_INFO_BLOCK_SIZE:
        if (data.length !== 14) return 'block sizes of the wrong length'
        this.#block = {
          min: data.readUInt32BE(2),
          preferred: data.readUInt32BE(6),
          max: data.readUInt32BE(10),
        }
        return undefined
      case NBD_INFO_DESCRIPTION:
        this.#description = data.toString('utf8', 2)
        return undefined
      default:
        return undefined
    }
  }

  #server(data: Buffer): string | undefined {
    const length = data.length < 4 ? Infinity : data.readUInt32BE(0)
    if (length > data.length - 4) return 'a listed name longer than its reply'
    if (this.#listed.length === MAX_LISTED) return `a list of more than ${MAX_LISTED} exports`
    const name = data.toString('utf8', 4, 4 + length)
    this.#listed.push({ name, description: data.toString('utf8', 4 + length) })
    return undefined
  }

  #acknowledged(): void {
    if (this.#goal.kind === 'attach') {
      const { exportName } = this.#goal
      switch (this.#option) {
        case NBD_OPT_STARTTLS:
          this.#outcome = { kind: 'startTls' }
          return
        case NBD_OPT_STRUCTURED_REPLY:
          this.#structured = true
          return this.#ask(NBD_OPT_SET_META_CONTEXT, contextPayload(exportName, ALLOCATION))
        case NBD_OPT_SET_META_CONTEXT:
          return this.#ask(NBD_OPT_GO, goPayload(exportName))
        default:
          return this.#attached()
      }
    }
    this.#sends.push(optionRequest(NBD_OPT_ABORT, NOTHING))
    this.#outcome = { kind: 'listed', exports: this.#listed }
  }

  #attached(): void {
    if (this.#size === undefined)
      return this.#fail('PROTOCOL', 'the server granted the export without saying its size')
    this.#outcome = {
      kind: 'attached',
      info: {
        size: this.#size,
        flags: this.#flags,
        block: this.#block,
        description: this.#description,
        structured: this.#structured,
        allocationId: this.#allocationId,
      },
    }
  }

  #refused(type: number, message: string): void {
    if (this.#goal.kind === 'attach') {
      const { exportName } = this.#goal
      if (this.#option === NBD_OPT_STARTTLS)
        return this.#fail('NOT_SUPPORTED', 'the server does not encrypt connections')
      if (this.#option !== NBD_OPT_GO) return this.#ask(NBD_OPT_GO, goPayload(exportName))
      if (type === NBD_REP_ERR_UNSUP) return this.#askByName(exportName)
    }
    const said = message === '' ? '' : `: ${message}`
    if (type === NBD_REP_ERR_TLS_REQD)
      return this.#fail('NOT_PERMITTED', `the server demands TLS${said}`)
    if (type === NBD_REP_ERR_UNKNOWN)
      return this.#fail('NOT_FOUND', `the server has no such export${said}`)
    if (type === NBD_REP_ERR_SHUTDOWN)
      return this.#fail('SHUTDOWN', `the server is shutting down${said}`)
    if (type === NBD_REP_ERR_POLICY)
      return this.#fail('NOT_PERMITTED', `the server does not permit this${said}`)
    this.#fail('REFUSED', `the server refused with error ${type - 2 ** 31}${said}`)
  }

  #ask(option: number, payload: Buffer): void {
    this.#option = option
    this.#sends.push(optionRequest(option, payload))
    this.#gather('replyHeader', REPLY_HEADER_SIZE)
  }

  /** The old option: the answer has no header, and a refusal is a closed connection. */
  #askByName(exportName: string): void {
    this.#sends.push(optionRequest(NBD_OPT_EXPORT_NAME, Buffer.from(exportName)))
    this.#gather('exportNameReply', this.#noZeroes ? 10 : 134)
  }

  #gather(expecting: Expecting, size: number): void {
    this.#expecting = expecting
    this.#piece = Buffer.alloc(size)
    this.#filled = 0
  }

  #fail(
    code: 'PROTOCOL' | 'NOT_SUPPORTED' | 'NOT_FOUND' | 'NOT_PERMITTED' | 'SHUTDOWN' | 'REFUSED',
    what: string,
  ): void {
    this.#outcome = { kind: 'failed', fault: new Fault(code, what) }
  }
}

/** magic u64, option u32, length u32, payload. */
export function optionRequest(option: number, payload: Buffer): Buffer {
  const bytes = Buffer.alloc(16 + payload.length)
  bytes.writeBigUInt64BE(IHAVEOPT, 0)
  bytes.writeUInt32BE(option, 8)
  bytes.writeUInt32BE(payload.length, 12)
  payload.copy(bytes, 16)
  return bytes
}

/** The payload of GO and INFO: the name, and the information wanted besides the export itself. */
export function goPayload(
  exportName: string,
  wanted: readonly number[] = [NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION],
): Buffer {
  const name = Buffer.from(exportName)
  const bytes = Buffer.alloc(6 + name.length + 2 * wanted.length)
  bytes.writeUInt32BE(name.length, 0)
  name.copy(bytes, 4)
  bytes.writeUInt16BE(wanted.length, 4 + name.length)
  wanted.forEach((type, index) => bytes.writeUInt16BE(type, 6 + name.length + 2 * index))
  return bytes
}

/** The payload of SET_META_CONTEXT: the name of the export, and one query. */
function contextPayload(exportName: string, query: string): Buffer {
  const name = Buffer.from(exportName)
  const bytes = Buffer.alloc(12 + name.length + query.length)
  bytes.writeUInt32BE(name.length, 0)
  name.copy(bytes, 4)
  bytes.writeUInt32BE(1, 4 + name.length)
  bytes.writeUInt32BE(query.length, 8 + name.length)
  bytes.write(query, 12 + name.length)
  return bytes
}
