/**
 * What each handshake option means and how it is answered: one function per option, in one table. An option that is
 * not in the table is unsupported. Pure: payload in, replies out.
 *
 * A later option (STRUCTURED_REPLY, STARTTLS, the meta contexts) is a new row, and a new kind of answer where it
 * changes the connection.
 */

import { maxPayload, transmissionFlags, type Export, type ExportTable } from './export.ts'
import {
  MAX_STRING,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_REP_ACK,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_INFO,
  NBD_REP_MAGIC,
  NBD_REP_SERVER,
  writeOffset,
} from './protocol.ts'

export type OptionAnswer =
  | { readonly kind: 'replies'; readonly replies: readonly Buffer[] }
  | { readonly kind: 'transmit'; readonly replies: readonly Buffer[]; readonly chosen: Export }
  | { readonly kind: 'abort'; readonly replies: readonly Buffer[] }
  | { readonly kind: 'invalid'; readonly reason: string }
  | { readonly kind: 'unsupported' }

type Answer = (payload: Buffer, exports: ExportTable) => OptionAnswer

const ANSWERS: ReadonlyMap<number, Answer> = new Map<number, Answer>([
  [NBD_OPT_ABORT, () => ({ kind: 'abort', replies: [optionReply(NBD_OPT_ABORT, NBD_REP_ACK)] })],
  [NBD_OPT_LIST, answerList],
  [NBD_OPT_INFO, (payload, exports) => answerInfo(NBD_OPT_INFO, payload, exports)],
  [NBD_OPT_GO, (payload, exports) => answerInfo(NBD_OPT_GO, payload, exports)],
])

const UNSUPPORTED: OptionAnswer = { kind: 'unsupported' }

/** The answer to a whole option of a fixed newstyle client, other than EXPORT_NAME. */
export function answerOption(option: number, payload: Buffer, exports: ExportTable): OptionAnswer {
  return ANSWERS.get(option)?.(payload, exports) ?? UNSUPPORTED
}

/** One option reply (section "Newstyle negotiation"): magic, option, type, length, then the data or message. */
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

function answerList(payload: Buffer, exports: ExportTable): OptionAnswer {
  if (payload.length > 0) return { kind: 'invalid', reason: 'LIST takes no data' }
  const replies = exports.list().map(({ name, description }) => {
    const length = Buffer.alloc(4)
    const bytes = Buffer.from(name)
    length.writeUInt32BE(bytes.length)
    const data = Buffer.concat([length, bytes, Buffer.from(description)])
    return optionReply(NBD_OPT_LIST, NBD_REP_SERVER, data)
  })
  replies.push(optionReply(NBD_OPT_LIST, NBD_REP_ACK))
  return { kind: 'replies', replies }
}

/** INFO and GO differ only in what follows them. */
function answerInfo(option: number, payload: Buffer, exports: ExportTable): OptionAnswer {
  const query = readInfoQuery(payload)
  if (query.kind === 'invalid') return query
  if (query.kind === 'tooBig') {
    const message = `an export name has at most ${MAX_STRING} bytes`
    return { kind: 'replies', replies: [optionReply(option, NBD_REP_ERR_TOO_BIG, message)] }
  }
  const chosen = exports.find(query.name)
  if (chosen === undefined) {
    const message = `no export is named ${JSON.stringify(query.name.slice(0, 256))}`
    return { kind: 'replies', replies: [optionReply(option, NBD_REP_ERR_UNKNOWN, message)] }
  }
  const replies = informationAbout(chosen, query.wanted).map((data) =>
    optionReply(option, NBD_REP_INFO, data),
  )
  replies.push(optionReply(option, NBD_REP_ACK))
  return option === NBD_OPT_GO
    ? { kind: 'transmit', replies, chosen }
    : { kind: 'replies', replies }
}

type InfoQuery =
  | { readonly kind: 'query'; readonly name: string; readonly wanted: ReadonlySet<number> }
  | { readonly kind: 'invalid'; readonly reason: string }
  | { readonly kind: 'tooBig' }

/** u32 length of the name, the name, u16 count of information requests, each a u16. */
function readInfoQuery(payload: Buffer): InfoQuery {
  if (payload.length < 6) return { kind: 'invalid', reason: 'the option is too short' }
  const length = payload.readUInt32BE(0)
  if (length > payload.length - 6)
    return { kind: 'invalid', reason: 'the name is longer than the option' }
  if (length > MAX_STRING) return { kind: 'tooBig' }
  const count = payload.readUInt16BE(4 + length)
  if (payload.length !== 6 + length + 2 * count)
    return { kind: 'invalid', reason: 'the information requests do not fill the option' }
  const name = readString(payload.subarray(4, 4 + length))
  if (name === undefined)
    return { kind: 'invalid', reason: 'the name is not UTF-8 without NUL characters' }
  const wanted = new Set<number>()
  for (let index = 0; index < count; index += 1)
    wanted.add(payload.readUInt16BE(6 + length + 2 * index))
  return { kind: 'query', name, wanted }
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** A string of the protocol, or undefined when it is not valid UTF-8 or holds a NUL (section "Values"). */
function readString(bytes: Buffer): string | undefined {
  if (bytes.includes(0)) return undefined
  try {
    return UTF8.decode(bytes)
  } catch {
    return undefined
  }
}

/** EXPORT and BLOCK_SIZE always (a client that did not ask ignores the latter), the texts when asked for. */
function informationAbout(chosen: Export, wanted: ReadonlySet<number>): Buffer[] {
  const { device } = chosen
  const info = Buffer.alloc(12)
  info.writeUInt16BE(NBD_INFO_EXPORT, 0)
  writeOffset(info, device.geometry.size, 2)
  info.writeUInt16BE(transmissionFlags(device), 10)

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
