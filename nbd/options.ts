/**
 * What each handshake option means and how it is answered: one function per option, in one table. An option that is
 * not in the table is unsupported. Pure: payload and session in, replies and the session that follows out.
 */

import { maxPayload, transmissionFlags, type Export, type ExportTable } from './export.ts'
import { listed, selected, type MetaContext } from './meta-context.ts'
import { readInfoQuery, readMetaQuery, type BadPayload } from './option-payload.ts'
import {
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_EXT_HEADER_REQD,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_MAGIC,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
  writeOffset,
} from './protocol.ts'
import { EXTENDED, SIMPLE, STRUCTURED, type ReplyFormat } from './reply-format.ts'

/** What a client has negotiated so far. */
export interface Session {
  readonly format: ReplyFormat
  /** The metadata contexts selected, which count only for the export that they were selected for. */
  readonly selection: Selection | undefined
}

interface Selection {
  readonly chosen: Export
  readonly contexts: readonly MetaContext[]
}

export const NEW_SESSION: Session = { format: SIMPLE, selection: undefined }

/**
 * What a connection is to TLS (section "TLS support"): one without it, on which it is offered or demanded (NOTLS, SELECTIVETLS
 * and FORCEDTLS there), or one that has it.
 */
export type TlsState = 'none' | 'offered' | 'required' | 'secured'

/** Every answer has its replies; what else follows from the option is its kind. */
export type OptionAnswer =
  | { readonly kind: 'continue'; readonly replies: readonly Buffer[]; readonly session: Session }
  | { readonly kind: 'transmit'; readonly replies: readonly Buffer[]; readonly chosen: Export }
  /** The only reply is for whoever starts TLS to send: nothing may come between them. */
  | { readonly kind: 'startTls'; readonly replies: readonly []; readonly granted: Buffer }
  | { readonly kind: 'abort'; readonly replies: readonly Buffer[] }

interface Question {
  readonly option: number
  readonly payload: Buffer
  /** What this client may use. */
  readonly exports: ExportTable
  /** Some exports are kept from some clients: then none may learn which names exist. */
  readonly restricted: boolean
  readonly tls: TlsState
  readonly session: Session
}

type Answer = (question: Question) => OptionAnswer

const ANSWERS: ReadonlyMap<number, Answer> = new Map<number, Answer>([
  [NBD_OPT_ABORT, ({ option }) => ({ kind: 'abort', replies: [acknowledgement(option)] })],
  [NBD_OPT_LIST, answerList],
  [NBD_OPT_STARTTLS, answerStartTls],
  [NBD_OPT_INFO, answerInfo],
  [NBD_OPT_GO, answerInfo],
  [NBD_OPT_STRUCTURED_REPLY, answerStructuredReply],
  [NBD_OPT_EXTENDED_HEADERS, answerExtendedHeaders],
  [NBD_OPT_LIST_META_CONTEXT, answerMetaContext],
  [NBD_OPT_SET_META_CONTEXT, answerMetaContext],
])

/** Answers every option but EXPORT_NAME, whose reply has no header and no errors. */
export function answerOption(question: Question): OptionAnswer {
  const answer = ANSWERS.get(question.option)
  if (answer !== undefined) return answer(question)
  return refuse(question, NBD_REP_ERR_UNSUP, 'this option is not supported')
}

/** The contexts that BLOCK_STATUS may ask for on an export. */
export function contextsFor({ selection }: Session, chosen: Export): readonly MetaContext[] {
  return selection?.chosen.name === chosen.name ? selection.contexts : []
}

/** magic u64, option u32, type u32, length u32, data. */
export function optionReply(option: number, type: number, data: Buffer | string = ''): Buffer {
  const body = typeof data === 'string' ? Buffer.from(data) : data
  const bytes = Buffer.allocUnsafe(20 + body.length)
  bytes.writeBigUInt64BE(NBD_REP_MAGIC, 0)
  bytes.writeUInt32BE(option, 8)
  bytes.writeUInt32BE(type, 12)
  bytes.writeUInt32BE(body.length, 16)
  body.copy(bytes, 20)
  return bytes
}

/** Any option but STARTTLS and ABORT where TLS is required, before it is there. */
export function refusalInTheClear(option: number): Buffer {
  return optionReply(option, NBD_REP_ERR_TLS_REQD, 'start TLS first')
}

function acknowledgement(option: number): Buffer {
  return optionReply(option, NBD_REP_ACK)
}

function accept(
  { option, session }: Question,
  replies: readonly Buffer[] = [],
  change: Partial<Session> = {},
): OptionAnswer {
  return {
    kind: 'continue',
    replies: [...replies, acknowledgement(option)],
    session: { ...session, ...change },
  }
}

function refuse({ option, session }: Question, error: number, reason: string): OptionAnswer {
  return { kind: 'continue', replies: [optionReply(option, error, reason)], session }
}

function refusePayload(question: Question, { kind, reason }: BadPayload): OptionAnswer {
  return refuse(question, kind === 'invalid' ? NBD_REP_ERR_INVALID : NBD_REP_ERR_TOO_BIG, reason)
}

/** The same answer for an export that is not there as for one that is for others. */
function refuseName(question: Question, name: string): OptionAnswer {
  const { restricted, tls } = question
  const named = `is named ${JSON.stringify(name.slice(0, 256))}`
  if (!restricted) return refuse(question, NBD_REP_ERR_UNKNOWN, `no export ${named}`)
  if (tls === 'offered')
    return refuse(question, NBD_REP_ERR_TLS_REQD, `no export that needs no TLS ${named}`)
  return refuse(question, NBD_REP_ERR_POLICY, `no export that this client may use ${named}`)
}

function answerStartTls(question: Question): OptionAnswer {
  const { option, payload, tls } = question
  if (tls === 'none') return refuse(question, NBD_REP_ERR_UNSUP, 'TLS is not offered here')
  if (tls === 'secured') return refuse(question, NBD_REP_ERR_INVALID, 'TLS is in use already')
  if (payload.length > 0) return refuse(question, NBD_REP_ERR_INVALID, 'STARTTLS takes no data')
  return { kind: 'startTls', replies: [], granted: acknowledgement(option) }
}

function answerList(question: Question): OptionAnswer {
  const { payload, exports } = question
  if (payload.length > 0) return refuse(question, NBD_REP_ERR_INVALID, 'LIST takes no data')
  const replies = exports.list().map(({ name, description }) => {
    const length = Buffer.alloc(4)
    const bytes = Buffer.from(name)
    length.writeUInt32BE(bytes.length)
    const data = Buffer.concat([length, bytes, Buffer.from(description)])
    return optionReply(NBD_OPT_LIST, NBD_REP_SERVER, data)
  })
  return accept(question, replies)
}

function answerStructuredReply(question: Question): OptionAnswer {
  if (question.payload.length > 0)
    return refuse(question, NBD_REP_ERR_INVALID, 'STRUCTURED_REPLY takes no data')
  if (question.session.format.kind === 'extended')
    return refuse(question, NBD_REP_ERR_EXT_HEADER_REQD, 'extended headers are in use already')
  return accept(question, [], { format: STRUCTURED })
}

function answerExtendedHeaders(question: Question): OptionAnswer {
  if (question.payload.length > 0)
    return refuse(question, NBD_REP_ERR_INVALID, 'EXTENDED_HEADERS takes no data')
  return accept(question, [], { format: EXTENDED })
}

/** INFO and GO differ only in what follows them. */
function answerInfo(question: Question): OptionAnswer {
  const { option, payload, exports, session } = question
  const query = readInfoQuery(payload)
  if (query.kind !== 'query') return refusePayload(question, query)
  const chosen = exports.find(query.name)
  if (chosen === undefined) return refuseName(question, query.name)
  const replies = informationAbout(chosen, query.wanted, session).map((data) =>
    optionReply(option, NBD_REP_INFO, data),
  )
  return option === NBD_OPT_GO
    ? { kind: 'transmit', replies: [...replies, acknowledgement(option)], chosen }
    : accept(question, replies)
}

/** LIST_META_CONTEXT shows what there is; SET_META_CONTEXT replaces what was selected before, even where it fails. */
function answerMetaContext(question: Question): OptionAnswer {
  const { option, payload, exports, session } = question
  const setting = option === NBD_OPT_SET_META_CONTEXT
  const cleared = setting
    ? { ...question, session: { ...session, selection: undefined } }
    : question
  if (session.format.kind === 'simple')
    return refuse(cleared, NBD_REP_ERR_INVALID, 'negotiate structured replies first')
  const query = readMetaQuery(payload)
  if (query.kind !== 'query') return refusePayload(cleared, query)
  const chosen = exports.find(query.name)
  if (chosen === undefined) return refuseName(cleared, query.name)
  const find = setting ? selected : listed
  const contexts = find(chosen.device, query.queries)
  const replies = contexts.map(({ id, name }) => {
    const text = Buffer.from(name)
    const data = Buffer.alloc(4 + text.length)
    // What is only listed has no number (section "Option types", NBD_OPT_LIST_META_CONTEXT).
    data.writeUInt32BE(setting ? id : 0)
    text.copy(data, 4)
    return optionReply(option, NBD_REP_META_CONTEXT, data)
  })
  return accept(cleared, replies, setting ? { selection: { chosen, contexts } } : {})
}

/** EXPORT and BLOCK_SIZE always (a client that did not ask ignores the latter), the texts when asked for. */
function informationAbout(chosen: Export, wanted: ReadonlySet<number>, session: Session): Buffer[] {
  const { device } = chosen
  const info = Buffer.alloc(12)
  info.writeUInt16BE(NBD_INFO_EXPORT, 0)
  writeOffset(info, device.geometry.size, 2)
  const contexts = contextsFor(session, chosen).length > 0
  info.writeUInt16BE(transmissionFlags(device, session.format, contexts), 10)

  const sizes = Buffer.alloc(14)
  sizes.writeUInt16BE(NBD_INFO_BLOCK_SIZE, 0)
  sizes.writeUInt32BE(device.geometry.block.min, 2)
  sizes.writeUInt32BE(device.geometry.block.preferred, 6)
  sizes.writeUInt32BE(maxPayload(device), 10)

  const all: Buffer[] = [info, sizes]
  if (wanted.has(NBD_INFO_NAME)) all.push(textInformation(NBD_INFO_NAME, chosen.name))
  if (wanted.has(NBD_INFO_DESCRIPTION) && chosen.description !== '')
    all.push(textInformation(NBD_INFO_DESCRIPTION, chosen.description))
  return all
}

function textInformation(type: number, text: string): Buffer {
  const bytes = Buffer.from(text)
  const data = Buffer.alloc(2 + bytes.length)
  data.writeUInt16BE(type, 0)
  bytes.copy(data, 2)
  return data
}
