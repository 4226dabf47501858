import t from 'tap'

import { KiB, MiB } from '../../core/units.ts'
import { goPayload, optionRequest } from '../../nbd/client-handshake.ts'
import {
  NEGOTIATION_LIMITS,
  Negotiation,
  greeting,
  type NegotiationOutcome,
} from '../../nbd/negotiation.ts'
import {
  NBD_INFO_DESCRIPTION,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
} from '../../nbd/protocol.ts'
import { CLIENT_FLAGS, tableOf } from './harness.ts'
import { EXTENDED_HEADERS, metaPayload } from './wire.ts'
import { ALL_CAPABILITIES, MemoryDevice } from './memory-device.ts'

const ACK = 1
const SERVER = 2
const INFO = 3
const ERR_UNSUP = 2 ** 31 + 1
const ERR_INVALID = 2 ** 31 + 3
const ERR_UNKNOWN = 2 ** 31 + 6
const ERR_TOO_BIG = 2 ** 31 + 9

const OLD_CLIENT = Buffer.from([0, 0, 0, 0])
const ZEROES_CLIENT = Buffer.from([0, 0, 0, 1])

const disk = new MemoryDevice(1 * MiB + 7)
const exports = tableOf(['disk', disk], ['', new MemoryDevice(512)])

interface Reply {
  readonly option: number
  readonly type: number
  readonly data: Buffer
}

/** Runs the bytes in pieces of `cut` and parses the option replies. */
function negotiate(
  parts: readonly Buffer[],
  cut = Infinity,
): { replies: Reply[]; raw: Buffer; outcome: NegotiationOutcome | undefined; left: number } {
  const bytes = Buffer.concat(parts)
  const negotiation = new Negotiation(exports)
  const sent: Buffer[] = []
  let outcome: NegotiationOutcome | undefined
  let at = 0
  while (at < bytes.length && outcome === undefined) {
    const step = negotiation.push(bytes.subarray(at, Math.min(bytes.length, at + cut)))
    sent.push(...step.replies)
    outcome = step.outcome
    at += step.consumed
  }
  const raw = Buffer.concat(sent)
  return { replies: parseReplies(raw), raw, outcome, left: bytes.length - at }
}

function parseReplies(raw: Buffer): Reply[] {
  const replies: Reply[] = []
  let at = 0
  while (at + 20 <= raw.length && raw.readBigUInt64BE(at) === 0x3e889045565a9n) {
    const length = raw.readUInt32BE(at + 16)
    const data = raw.subarray(at + 20, at + 20 + length)
    replies.push({ option: raw.readUInt32BE(at + 8), type: raw.readUInt32BE(at + 12), data })
    at += 20 + length
  }
  return replies
}

const types = (replies: readonly Reply[]): number[] => replies.map((reply) => reply.type)

void t.test('the greeting offers fixed newstyle without zeroes', (t) => {
  t.equal(greeting().toString('hex'), '4e42444d4147494349484156454f50540003')
  t.end()
})

void t.test('GO grants an export with its size, flags and block sizes', (t) => {
  const tail = Buffer.from('transmission')
  const { replies, outcome, left } = negotiate([
    CLIENT_FLAGS,
    optionRequest(NBD_OPT_GO, goPayload('disk', [NBD_INFO_NAME, NBD_INFO_DESCRIPTION])),
    tail,
  ])
  t.strictSame(types(replies), [INFO, INFO, INFO, INFO, ACK])
  t.equal(replies[0]!.data.toString('hex'), '00000000000000100007' + '096d')
  t.equal(replies[1]!.data.toString('hex'), '0003' + '00000001' + '00001000' + '02000000')
  t.equal(replies[2]!.data.toString(), '\0\x01disk')
  t.equal(replies[3]!.data.toString(), '\0\x02the disk')
  t.ok(outcome?.kind === 'transmit' && outcome.chosen.device === disk)
  t.equal(left, tail.length, 'the bytes behind GO belong to the transmission')
  t.end()
})

void t.test('the flags say what the device can do', (t) => {
  const flagsOf = (device: MemoryDevice): number => {
    const negotiation = new Negotiation(tableOf(['d', device]))
    const option = optionRequest(NBD_OPT_GO, goPayload('d', []))
    const { replies } = negotiation.push(Buffer.concat([CLIENT_FLAGS, option]))
    return replies[0]!.readUInt16BE(30)
  }
  const bare = new MemoryDevice(512, { rotational: true })
  bare.can = { ...ALL_CAPABILITIES, flush: false, fua: false, trim: false, zero: false }
  t.equal(flagsOf(bare), 1 | 16 | 256, 'fast zero needs zero')
  t.equal(flagsOf(new MemoryDevice(512, { readOnly: true })), 1 | 2 | 4 | 8 | 256)
  t.end()
})

void t.test('EXPORT_NAME is answered with the export alone, padded where the client asks', (t) => {
  const option = optionRequest(NBD_OPT_EXPORT_NAME, Buffer.from('disk'))
  const short = negotiate([CLIENT_FLAGS, option])
  t.equal(short.raw.toString('hex'), '0000000000100007' + '096d')
  t.equal(short.outcome?.kind, 'transmit')
  for (const flags of [OLD_CLIENT, ZEROES_CLIENT]) {
    const padded = negotiate([flags, option])
    t.equal(padded.raw.length, 134)
    t.ok(padded.raw.subarray(10).every((byte) => byte === 0))
    t.equal(padded.outcome?.kind, 'transmit')
  }
  t.end()
})

void t.test('INFO, LIST and ABORT leave the client in the handshake, or at the door', (t) => {
  const { replies, outcome } = negotiate([
    CLIENT_FLAGS,
    optionRequest(NBD_OPT_INFO, goPayload('disk', [])),
    optionRequest(NBD_OPT_LIST, Buffer.alloc(0)),
    optionRequest(NBD_OPT_ABORT, Buffer.alloc(0)),
  ])
  t.strictSame(types(replies), [INFO, INFO, ACK, SERVER, SERVER, ACK, ACK])
  t.equal(replies[3]!.data.toString(), '\0\0\0\x04diskthe disk')
  t.equal(replies[4]!.data.toString(), '\0\0\0\0the ')
  t.strictSame(outcome, { kind: 'close', reason: 'the client aborted', fault: false })
  t.end()
})

const name = (text: string): Buffer => goPayload(text, [])
const withRequests = (count: number, actual: number): Buffer => {
  const payload = goPayload(
    'disk',
    Array.from({ length: actual }, () => 3),
  )
  payload.writeUInt16BE(count, 8)
  return payload
}
const nameLength = (length: number): Buffer => {
  const payload = goPayload('disk', [])
  payload.writeUInt32BE(length, 0)
  return payload
}
const badUtf8 = (): Buffer => {
  const payload = goPayload('disk', [])
  payload[5] = 0xff
  return payload
}

const refused: [string, number, Buffer, number][] = [
  ['an unknown option', 77, Buffer.alloc(100), ERR_UNSUP],
  ['STARTTLS', 5, Buffer.alloc(0), ERR_UNSUP],
  ['STRUCTURED_REPLY with data', 8, Buffer.alloc(1), ERR_INVALID],
  ['EXTENDED_HEADERS with data', 11, Buffer.alloc(1), ERR_INVALID],
  ['LIST_META_CONTEXT without chunks', 9, metaPayload('disk'), ERR_INVALID],
  ['SET_META_CONTEXT without chunks', 10, metaPayload('disk', 'base:allocation'), ERR_INVALID],
  ['LIST with data', NBD_OPT_LIST, Buffer.alloc(3), ERR_INVALID],
  ['GO without a payload', NBD_OPT_GO, Buffer.alloc(0), ERR_INVALID],
  ['GO cut short', NBD_OPT_GO, Buffer.alloc(5), ERR_INVALID],
  ['a name longer than its option', NBD_OPT_GO, nameLength(5), ERR_INVALID],
  ['a name of 2^32-1 bytes', NBD_OPT_GO, nameLength(2 ** 32 - 1), ERR_INVALID],
  ['a name shorter than its option', NBD_OPT_GO, nameLength(3), ERR_INVALID],
  ['fewer requests than counted', NBD_OPT_GO, withRequests(3, 2), ERR_INVALID],
  ['more requests than counted', NBD_OPT_INFO, withRequests(1, 2), ERR_INVALID],
  ['a name that is not UTF-8', NBD_OPT_GO, badUtf8(), ERR_INVALID],
  ['a NUL behind a known name', NBD_OPT_GO, name('disk\0junk'), ERR_INVALID],
  ['a NUL at the end of a known name', NBD_OPT_INFO, name('disk\0'), ERR_INVALID],
  ['a name too long', NBD_OPT_GO, name('x'.repeat(4097)), ERR_TOO_BIG],
  ['an option too long', NBD_OPT_GO, Buffer.alloc(16 * KiB + 1), ERR_TOO_BIG],
  ['an unknown option too long', 77, Buffer.alloc(100 * KiB), ERR_TOO_BIG],
  ['an export that is not there', NBD_OPT_GO, name('nope'), ERR_UNKNOWN],
  ['a name of 4096 bytes', NBD_OPT_INFO, name('x'.repeat(4096)), ERR_UNKNOWN],
  ['a BOM before a known name', NBD_OPT_GO, name('\ufeffdisk'), ERR_UNKNOWN],
]

for (const [what, option, payload, error] of refused) {
  void t.test(`${what} is refused, and the next option understood`, (t) => {
    for (const cut of [Infinity, 1]) {
      const go = optionRequest(NBD_OPT_GO, name('disk'))
      const { replies, outcome } = negotiate(
        [CLIENT_FLAGS, optionRequest(option, payload), go],
        cut,
      )
      t.strictSame(types(replies), [error, INFO, INFO, ACK])
      t.equal(replies[0]!.option, option)
      t.ok(replies[0]!.data.length > 0, 'with a reason for people')
      t.equal(outcome?.kind, 'transmit')
    }
    t.end()
  })
}

const option = (type: number, payload: Buffer): Buffer => optionRequest(type, payload)
const announced = (type: number, length: number): Buffer => {
  const header = optionRequest(type, Buffer.alloc(0))
  header.writeUInt32BE(length, 12)
  return header
}

const dropped: [string, Buffer[]][] = [
  ['unknown client flags', [Buffer.from([0, 0, 0, 7])]],
  ['high unknown client flags', [Buffer.from([0x80, 0, 0, 3])]],
  ['an option without its magic', [CLIENT_FLAGS, Buffer.alloc(16, 7)]],
  ['EXPORT_NAME of an unknown export', [CLIENT_FLAGS, option(1, Buffer.from('nope'))]],
  ['EXPORT_NAME with a NUL', [CLIENT_FLAGS, option(1, Buffer.from('disk\0junk'))]],
  ['EXPORT_NAME that is not UTF-8', [CLIENT_FLAGS, option(1, Buffer.from([0xff]))]],
  ['EXPORT_NAME too long', [CLIENT_FLAGS, announced(1, 4097)]],
  [
    'EXPORT_NAME with extended headers',
    [CLIENT_FLAGS, EXTENDED_HEADERS, option(1, Buffer.from('disk'))],
  ],
  ['GO of an old client', [OLD_CLIENT, option(NBD_OPT_GO, name('disk'))]],
  ['an option of 4 GiB', [CLIENT_FLAGS, announced(NBD_OPT_GO, 2 ** 32 - 1)]],
  [
    'too many options',
    [CLIENT_FLAGS, ...Array.from({ length: 129 }, () => option(77, Buffer.alloc(0)))],
  ],
  [
    'too many bytes of options',
    [CLIENT_FLAGS, ...Array.from({ length: 11 }, () => option(77, Buffer.alloc(100 * KiB)))],
  ],
]

for (const [what, parts] of dropped) {
  void t.test(`${what}: the client is dropped`, (t) => {
    for (const cut of [Infinity, 1]) {
      const { outcome } = negotiate(parts, cut)
      t.ok(outcome?.kind === 'close' && outcome.fault, `cut ${cut}`)
    }
    t.end()
  })
}

void t.test('however the bytes are cut, the replies are the same', (t) => {
  const parts = [
    CLIENT_FLAGS,
    option(77, Buffer.alloc(33)),
    option(NBD_OPT_LIST, Buffer.alloc(0)),
    option(NBD_OPT_GO, Buffer.alloc(20 * KiB)),
    option(NBD_OPT_INFO, name('nope')),
    option(NBD_OPT_GO, name('disk')),
    Buffer.alloc(5),
  ]
  const whole = negotiate(parts)
  t.equal(whole.outcome?.kind, 'transmit')
  for (const cut of [1, 2, 3, 7, 16, 17, 19, 28, 1000]) {
    const pieces = negotiate(parts, cut)
    t.ok(pieces.raw.equals(whole.raw), `cut ${cut}`)
    t.equal(pieces.left, whole.left)
  }
  t.end()
})

void t.test('the limits leave room for what real clients send', (t) => {
  t.ok(NEGOTIATION_LIMITS.maxOptionLength >= 6 + 4096 + 2 * 64)
  t.end()
})
