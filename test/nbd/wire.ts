/**
 * Chunked replies and extended requests as a test writes and reads them. It shares no code with the server: the numbers
 * and layouts here are the specification's, typed once more.
 */

import type { RawClient } from './harness.ts'

export type Chunked = 'structured' | 'extended'
export const CHUNKED: readonly Chunked[] = ['structured', 'extended']

export const READ = 0
export const WRITE = 1
export const FLUSH = 3
export const TRIM = 4
export const CACHE = 5
export const WRITE_ZEROES = 6
export const BLOCK_STATUS = 7
export const DF = 4
export const REQ_ONE = 8
export const PAYLOAD_LEN = 32

/** magic, option, length, payload. */
export function option(type: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.write('IHAVEOPT')
  bytes.writeUInt32BE(type, 8)
  bytes.writeUInt32BE(payload.length, 12)
  return Buffer.concat([bytes, payload])
}

export const STRUCTURED_REPLY = option(8)
export const EXTENDED_HEADERS = option(11)

/** The option that makes replies chunks. */
export function chunkOption(form: Chunked): Buffer {
  return form === 'structured' ? STRUCTURED_REPLY : EXTENDED_HEADERS
}

function u32(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length)
  values.forEach((value, index) => bytes.writeUInt32BE(value, 4 * index))
  return bytes
}

function text(words: string): Buffer {
  return Buffer.concat([u32(Buffer.byteLength(words)), Buffer.from(words)])
}

/** The payload of LIST_META_CONTEXT (9) and SET_META_CONTEXT (10). */
export function metaPayload(name: string, ...queries: readonly string[]): Buffer {
  return Buffer.concat([text(name), u32(queries.length), ...queries.map(text)])
}

export function setContexts(name: string, ...queries: readonly string[]): Buffer {
  return option(10, metaPayload(name, ...queries))
}

/** A request in the form of header that belongs to the form of reply. */
export function ask(
  form: Chunked,
  type: number,
  cookie: number | bigint,
  at: number | bigint,
  length: number | bigint,
  flags = 0,
): Buffer {
  const extended = form === 'extended'
  const bytes = Buffer.alloc(extended ? 32 : 28)
  bytes.writeUInt32BE(extended ? 0x21e41c71 : 0x25609513, 0)
  // A WRITE carries its payload under either form; only the extended header says so.
  bytes.writeUInt16BE(extended && type === WRITE ? flags | PAYLOAD_LEN : flags, 4)
  bytes.writeUInt16BE(type, 6)
  bytes.writeBigUInt64BE(BigInt(cookie), 8)
  bytes.writeBigUInt64BE(BigInt(at), 16)
  if (extended) bytes.writeBigUInt64BE(BigInt(length), 24)
  else bytes.writeUInt32BE(Number(length), 24)
  return bytes
}

/** A request that carries a payload though its command need not; extended headers only. */
export function askWith(
  type: number,
  cookie: number,
  at: number,
  payload: Buffer,
  flags = 0,
): Buffer {
  return Buffer.concat([
    ask('extended', type, cookie, at, payload.length, flags | PAYLOAD_LEN),
    payload,
  ])
}

/** The payload of a BLOCK_STATUS that asks for some contexts only. */
export function filter(length: number | bigint, ...ids: readonly number[]): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(length))
  return Buffer.concat([bytes, u32(...ids)])
}

export type Content =
  | { readonly what: 'none' }
  | { readonly what: 'data'; readonly at: number; readonly data: Buffer }
  | { readonly what: 'hole'; readonly at: number; readonly length: number }
  | { readonly what: 'status'; readonly id: number; readonly runs: readonly [number, number][] }
  | { readonly what: 'error'; readonly error: number; readonly message: string }

export interface Chunk {
  readonly done: boolean
  readonly cookie: bigint
  /** The request's offset, in an extended reply. */
  readonly offset: bigint | undefined
  readonly content: Content
}

/** The next chunk. Throws at anything that the specification does not allow. */
async function chunk(client: RawClient, form: Chunked): Promise<Chunk> {
  const extended = form === 'extended'
  const header = await client.take(extended ? 32 : 20)
  if (header.readUInt32BE(0) !== (extended ? 0x6e8a278c : 0x668e33ef))
    throw new Error(`not a ${form} reply: ${header.toString('hex')}`)
  const flags = header.readUInt16BE(4)
  if (flags > 1) throw new Error(`unknown reply flags ${flags}`)
  const length = extended ? Number(header.readBigUInt64BE(24)) : header.readUInt32BE(16)
  const payload = await client.take(length)
  return {
    done: flags === 1,
    cookie: header.readBigUInt64BE(8),
    offset: extended ? header.readBigUInt64BE(16) : undefined,
    content: contentOf(header.readUInt16BE(6), payload, extended),
  }
}

function contentOf(type: number, payload: Buffer, extended: boolean): Content {
  switch (type) {
    case 0:
      exactly(payload, 0)
      return { what: 'none' }
    case 1:
      if (payload.length < 9) throw new Error('a data chunk without data')
      return { what: 'data', at: Number(payload.readBigUInt64BE(0)), data: payload.subarray(8) }
    case 2:
      exactly(payload, 12)
      return {
        what: 'hole',
        at: Number(payload.readBigUInt64BE(0)),
        length: payload.readUInt32BE(8),
      }
    case extended ? 6 : 5:
      return status(payload, extended)
    case 0x8001:
      exactly(payload, 6 + payload.readUInt16BE(4))
      return {
        what: 'error',
        error: payload.readUInt32BE(0),
        message: payload.toString('utf8', 6),
      }
    default:
      throw new Error(`a chunk of type ${type}`)
  }
}

function status(payload: Buffer, extended: boolean): Content {
  const runs: [number, number][] = []
  const size = extended ? 16 : 8
  for (let at = extended ? 8 : 4; at < payload.length; at += size) {
    const length = extended ? Number(payload.readBigUInt64BE(at)) : payload.readUInt32BE(at)
    const value = extended ? Number(payload.readBigUInt64BE(at + 8)) : payload.readUInt32BE(at + 4)
    if (length === 0) throw new Error('a descriptor of no bytes')
    runs.push([length, value])
  }
  if (runs.length === 0) throw new Error('a status chunk without descriptors')
  if (extended && payload.readUInt32BE(4) !== runs.length) throw new Error('a wrong count')
  return { what: 'status', id: payload.readUInt32BE(0), runs }
}

function exactly(payload: Buffer, length: number): void {
  if (payload.length !== length) throw new Error(`${payload.length} bytes in place of ${length}`)
}

/** All chunks of the next reply, when no other one comes between them. */
export async function reply(client: RawClient, form: Chunked): Promise<readonly Chunk[]> {
  const chunks: Chunk[] = []
  do chunks.push(await chunk(client, form))
  while (chunks.at(-1)?.done !== true)
  return chunks
}

/** What the next reply says, without what it repeats of the request. */
export async function answer(client: RawClient, form: Chunked): Promise<readonly Content[]> {
  return (await reply(client, form)).map(({ content }) => content)
}

/** The error of the next reply, 0 for none. */
export async function errorOf(client: RawClient, form: Chunked): Promise<number> {
  const [first] = await answer(client, form)
  return first?.what === 'error' ? first.error : 0
}
