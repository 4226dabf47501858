/**
 * The server's half of the fixed newstyle handshake as a pure machine: bytes in, replies and an outcome out.
 * No socket, no clock; the connection sends the replies and keeps the deadline.
 *
 * Invariants:
 *  - How the bytes are cut makes no difference: replies and outcome are functions of the byte sequence. (What follows
 *    STARTTLS is refused where it is seen here, and otherwise is for TLS to read: it is no option either way.)
 *  - Memory is bounded: a payload is buffered only after its length was found within `maxOptionLength`.
 *  - Every option of a fixed newstyle client is answered, or the connection is closed; never silently skipped.
 *  - After an outcome nothing more is consumed: the rest of the bytes belongs to the transmission phase.
 *  - Where TLS is required, nothing but STARTTLS and ABORT has an effect before it, and nothing of an export is told.
 *  - What was negotiated before TLS, and what arrived before it, counts for nothing after it; there is no way back.
 */

import { assert } from '../core/assert.ts'
import { KiB, MiB } from '../core/units.ts'
import type { PeerIdentity } from '../net/peer-identity.ts'
import { isRestricted, visibleTo } from './access.ts'
import { transmissionFlags, type Export, type ExportTable } from './export.ts'
import type { MetaContext } from './meta-context.ts'
import {
  NEW_SESSION,
  answerOption,
  contextsFor,
  optionReply,
  refusalInTheClear,
  type Session,
  type TlsState,
} from './options.ts'
import {
  IHAVEOPT,
  MAX_STRING,
  NBDMAGIC,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_STARTTLS,
  NBD_REP_ERR_TOO_BIG,
  writeOffset,
} from './protocol.ts'
import type { ReplyFormat } from './reply-format.ts'

export interface NegotiationLimits {
  /** Options that one client may send. */
  readonly maxOptions: number
  /** Bytes that one client may send before transmission, all options together. */
  readonly maxBytes: number
  /** Bytes of one option's payload that are kept; a longer one is drained and refused. */
  readonly maxOptionLength: number
}

export const NEGOTIATION_LIMITS: NegotiationLimits = {
  maxOptions: 128,
  maxBytes: 1 * MiB,
  maxOptionLength: 16 * KiB,
}

/** What the transmission phase is to be like. */
export interface Agreement {
  readonly chosen: Export
  readonly format: ReplyFormat
  readonly contexts: readonly MetaContext[]
}

export type NegotiationOutcome =
  | ({ readonly kind: 'transmit' } & Agreement)
  /** To send `granted` and then speak TLS; `secured` goes on. */
  | { readonly kind: 'startTls'; readonly granted: Buffer }
  /** `fault`: the client broke the protocol; otherwise it left by the door. */
  | { readonly kind: 'close'; readonly reason: string; readonly fault: boolean }

export interface NegotiationStep {
  /** Bytes of the input that were used up. */
  readonly consumed: number
  /** To send, in order, before acting on the outcome. */
  readonly replies: readonly Buffer[]
  readonly outcome: NegotiationOutcome | undefined
}

/** What the bytes being gathered mean. */
type Expecting =
  | { readonly kind: 'clientFlags' }
  | { readonly kind: 'optionHeader' }
  | { readonly kind: 'optionPayload'; readonly option: number }
  /** `reply` is the answer to give once `remaining` bytes have passed. */
  | { readonly kind: 'drain'; readonly remaining: number; readonly reply: Buffer }
  | { readonly kind: 'done' }

const CLIENT_FLAGS_SIZE = 4
const OPTION_HEADER_SIZE = 16
const NOTHING = Buffer.alloc(0)

/** What the server says first. */
export function greeting(): Buffer {
  const bytes = Buffer.alloc(18)
  bytes.writeBigUInt64BE(NBDMAGIC, 0)
  bytes.writeBigUInt64BE(IHAVEOPT, 8)
  bytes.writeUInt16BE(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES, 16)
  return bytes
}

export class Negotiation {
  readonly #exports: ExportTable
  readonly #limits: NegotiationLimits
  #tls: TlsState
  /** What the client may use, as far as is known who it is. */
  #visible: ExportTable
  #expecting: Expecting = { kind: 'clientFlags' }
  /** The fixed-size piece being gathered, and how much of it is there. */
  #piece: Buffer = Buffer.alloc(CLIENT_FLAGS_SIZE)
  #filled = 0
  #fixedNewstyle = false
  #noZeroes = false
  #session: Session = NEW_SESSION
  #options = 0
  #bytes = 0
  #replies: Buffer[] = []
  #outcome: NegotiationOutcome | undefined

  constructor(
    exports: ExportTable,
    limits: NegotiationLimits = NEGOTIATION_LIMITS,
    tls: Exclude<TlsState, 'secured'> = 'none',
  ) {
    this.#exports = exports
    this.#limits = limits
    this.#tls = tls
    this.#visible = visibleTo(exports, undefined)
  }

  /** Uses up as much of `input` as the handshake wants. */
  push(input: Buffer): NegotiationStep {
    this.#replies = []
    let at = 0
    while (this.#outcome === undefined && at < input.length) at = this.#take(input, at)
    // Nobody knows who sent it: the client, or somebody between who wants it to be taken for the client's under TLS.
    if (this.#outcome?.kind === 'startTls' && at < input.length)
      this.#drop('data behind STARTTLS, before it was granted')
    return { consumed: at, replies: this.#replies, outcome: this.#outcome }
  }

  /** TLS is there, and the client has proved to be `identity`. The options begin anew; its flags, said once, remain. */
  secured(identity: PeerIdentity): void {
    assert(this.#outcome?.kind === 'startTls', 'TLS was asked for')
    this.#outcome = undefined
    this.#tls = 'secured'
    this.#session = NEW_SESSION
    this.#visible = visibleTo(this.#exports, identity)
    this.#nextOption()
  }

  /** Moves on by one piece or to the end of the input; gives the new position. */
  #take(input: Buffer, at: number): number {
    const expecting = this.#expecting
    if (expecting.kind === 'drain') {
      const taken = Math.min(expecting.remaining, input.length - at)
      const remaining = expecting.remaining - taken
      if (remaining === 0) this.#reply(expecting.reply)
      else this.#expecting = { ...expecting, remaining }
      return at + taken
    }
    const taken = input.copy(this.#piece, this.#filled, at)
    this.#filled += taken
    if (this.#filled === this.#piece.length) this.#complete(expecting, this.#piece)
    return at + taken
  }

  #complete(expecting: Expecting, piece: Buffer): void {
    switch (expecting.kind) {
      case 'clientFlags':
        return this.#clientFlags(piece.readUInt32BE(0))
      case 'optionHeader':
        return this.#optionHeader(piece)
      case 'optionPayload':
        return this.#option(expecting.option, piece)
      case 'drain':
      case 'done':
        return assert(false, 'drained bytes and a finished handshake gather nothing')
    }
  }

  #clientFlags(flags: number): void {
    const known = NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES
    if ((flags & ~known) !== 0) return this.#drop(`unknown client flags 0x${flags.toString(16)}`)
    this.#fixedNewstyle = (flags & NBD_FLAG_C_FIXED_NEWSTYLE) !== 0
    this.#noZeroes = (flags & NBD_FLAG_C_NO_ZEROES) !== 0
    this.#gather({ kind: 'optionHeader' }, OPTION_HEADER_SIZE)
  }

  #optionHeader(header: Buffer): void {
    if (header.readBigUInt64BE(0) !== IHAVEOPT) return this.#drop('an option without its magic')
    const option = header.readUInt32BE(8)
    const length = header.readUInt32BE(12)
    const { maxOptions, maxBytes, maxOptionLength } = this.#limits
    this.#options += 1
    this.#bytes += OPTION_HEADER_SIZE + length
    if (this.#options > maxOptions) return this.#drop(`more than ${maxOptions} options`)
    if (this.#bytes > maxBytes) return this.#drop(`more than ${maxBytes} bytes of options`)
    if (this.#tls === 'required' && option !== NBD_OPT_STARTTLS && option !== NBD_OPT_ABORT)
      return this.#refuseInTheClear(option, length)
    if (option === NBD_OPT_EXPORT_NAME) {
      // This option has no error reply: closing is the only refusal.
      if (length > MAX_STRING) return this.#drop(`an export name of ${length} bytes`)
    } else if (!this.#fixedNewstyle) {
      return this.#drop(`option ${option} from a client that is not fixed newstyle`)
    } else if (length > maxOptionLength) {
      const reply = optionReply(option, NBD_REP_ERR_TOO_BIG, 'this option is too long')
      return this.#drain(length, reply)
    }
    if (length === 0) this.#option(option, NOTHING)
    else this.#gather({ kind: 'optionPayload', option }, length)
  }

  #refuseInTheClear(option: number, length: number): void {
    if (option === NBD_OPT_EXPORT_NAME) return this.#drop('EXPORT_NAME without TLS')
    if (!this.#fixedNewstyle) return this.#drop('a client that is not fixed newstyle, without TLS')
    if (length === 0) this.#reply(refusalInTheClear(option))
    else this.#drain(length, refusalInTheClear(option))
  }

  #option(option: number, payload: Buffer): void {
    if (option === NBD_OPT_EXPORT_NAME) return this.#exportName(payload)
    const answer = answerOption({
      option,
      payload,
      exports: this.#visible,
      restricted: isRestricted(this.#exports),
      tls: this.#tls,
      session: this.#session,
    })
    this.#replies.push(...answer.replies)
    switch (answer.kind) {
      case 'continue':
        this.#session = answer.session
        return this.#nextOption()
      case 'transmit':
        return this.#transmit(answer.chosen)
      case 'startTls':
        return this.#finish({ kind: 'startTls', granted: answer.granted })
      case 'abort':
        return this.#finish({ kind: 'close', reason: 'the client aborted', fault: false })
    }
  }

  /** The option of old clients: the answer is the export itself, without a reply header. */
  #exportName(payload: Buffer): void {
    const { format } = this.#session
    if (format.kind === 'extended') return this.#drop('EXPORT_NAME with extended headers')
    const chosen = this.#visible.find(payload.toString('utf8'))
    // The decoder replaces bad UTF-8; comparing the bytes keeps such a name from meaning another export.
    if (chosen === undefined || !Buffer.from(chosen.name).equals(payload))
      return this.#drop('EXPORT_NAME of an export that is not there')
    const reply = Buffer.alloc(this.#noZeroes ? 10 : 134)
    writeOffset(reply, chosen.device.geometry.size, 0)
    const contexts = contextsFor(this.#session, chosen).length > 0
    reply.writeUInt16BE(transmissionFlags(chosen.device, format, contexts), 8)
    this.#replies.push(reply)
    this.#transmit(chosen)
  }

  #transmit(chosen: Export): void {
    const contexts = contextsFor(this.#session, chosen)
    this.#finish({ kind: 'transmit', chosen, format: this.#session.format, contexts })
  }

  #reply(reply: Buffer): void {
    this.#replies.push(reply)
    this.#nextOption()
  }

  #nextOption(): void {
    this.#gather({ kind: 'optionHeader' }, OPTION_HEADER_SIZE)
  }

  #gather(expecting: Expecting, size: number): void {
    this.#expecting = expecting
    this.#piece = Buffer.allocUnsafe(size)
    this.#filled = 0
  }

  #drain(remaining: number, reply: Buffer): void {
    this.#expecting = { kind: 'drain', remaining, reply }
  }

  #drop(reason: string): void {
    this.#finish({ kind: 'close', reason, fault: true })
  }

  #finish(outcome: NegotiationOutcome): void {
    this.#expecting = { kind: 'done' }
    this.#outcome = outcome
  }
}
