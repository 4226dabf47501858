/** Structured replies as the client takes them. The numbers and layouts here are the specification's, typed once more. */

import fc from 'fast-check'
import t from 'tap'

import { Fault } from '../../core/fault.ts'
import type { Extent } from '../../core/block-device.ts'
import { ClientHandshake, type ClientOutcome } from '../../nbd/client-handshake.ts'
import { greeting } from '../../nbd/negotiation.ts'
import { PendingReply } from '../../nbd/pending-reply.ts'
import { ReplyDecoder, type ReplySink } from '../../nbd/reply-decoder.ts'

const READ = 0
const BLOCK_STATUS = 7
const [NONE, DATA, HOLE, STATUS, ERROR, ERROR_AT] = [0, 1, 2, 5, 32_769, 32_770] as const

function u32(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length)
  values.forEach((value, index) => bytes.writeUInt32BE(value, 4 * index))
  return bytes
}

function chunk(type: number, content: Buffer, { done = false, cookie = 7 } = {}): Buffer {
  const header = Buffer.alloc(20)
  header.writeUInt32BE(0x668e33ef, 0)
  header.writeUInt16BE(done ? 1 : 0, 4)
  header.writeUInt16BE(type, 6)
  header.writeUInt32BE(cookie, 12)
  header.writeUInt32BE(content.length, 16)
  return Buffer.concat([header, content])
}

const data = (at: number, text: string): Buffer =>
  chunk(DATA, Buffer.concat([u32(0, at), Buffer.from(text)]))
const hole = (at: number, length: number): Buffer => chunk(HOLE, u32(0, at, length))
const error = (number: number, message: string, type: number = ERROR): Buffer => {
  const length = Buffer.alloc(2)
  length.writeUInt16BE(message.length)
  const rest = type === ERROR_AT ? u32(0, 0) : Buffer.alloc(0)
  return chunk(type, Buffer.concat([u32(number), length, Buffer.from(message), rest]))
}
const status = (...words: readonly number[]): Buffer => chunk(STATUS, u32(...words))
const END = chunk(NONE, Buffer.alloc(0), { done: true })

interface Told {
  /** What the request came to. */
  readonly outcome: string
  readonly violation: string | undefined
  readonly into: string
}

/** Gives `stream`, cut at every `cut` bytes, to one request of 8 bytes at 100 under cookie 7. */
function receive(type: number, stream: Buffer, cut: number): Told {
  let outcome = 'none'
  const into = Buffer.from('--------')
  const asked = {
    type,
    at: 100,
    length: 8,
    into: type === READ ? into : Buffer.alloc(0),
    contextId: 3,
  }
  const show = ({ at, length, kind }: Extent): string => `${kind} ${at}+${length}`
  const pending = new PendingReply(
    asked,
    'here',
    (extents) => (outcome = ['done', ...extents.map(show)].join(' ')),
    (fault) => (outcome = `${fault.code}: ${fault.message}`),
  )
  const sink: ReplySink = {
    begin: (number, _high, low) => {
      if (low !== 7 || (number === 0 && !pending.maySucceedSimply(true))) return undefined
      pending.simple(number)
      return Buffer.alloc(0)
    },
    complete: () => undefined,
    beginChunk: (_high, low) => low === 7,
    chunkData: (at, length) => pending.data(at, length),
    chunkContent: (kind, content) => pending.content(kind, content),
    completeChunk: (done) => (done ? pending.done() : undefined),
  }
  const decoder = new ReplyDecoder(sink, true)
  for (let at = 0; at < stream.length && decoder.violation === undefined; at += cut) {
    const piece = stream.subarray(at, at + cut)
    decoder.push(piece, piece.length)
  }
  return { outcome, violation: decoder.violation, into: into.toString('latin1') }
}

const cases: readonly {
  readonly what: string
  readonly type: number
  readonly stream: readonly Buffer[]
  readonly outcome: string | RegExp
  readonly into?: string
  readonly violation?: RegExp
}[] = [
  {
    what: 'data in one piece',
    type: READ,
    stream: [data(100, 'abcdefgh'), END],
    outcome: 'done',
    into: 'abcdefgh',
  },
  {
    what: 'pieces in any order',
    type: READ,
    stream: [data(106, 'gh'), data(100, 'abc'), data(103, 'def'), END],
    outcome: 'done',
    into: 'abcdefgh',
  },
  {
    what: 'a hole between data',
    type: READ,
    stream: [data(100, 'ab'), hole(102, 4), data(106, 'gh'), END],
    outcome: 'done',
    into: 'ab\0\0\0\0gh',
  },
  {
    what: 'an error with a message',
    type: READ,
    stream: [error(5, 'bad disk'), END],
    outcome: /^IO: .*bad disk/,
  },
  {
    what: 'an error somewhere, after data',
    type: READ,
    stream: [data(100, 'ab'), error(28, '', ERROR_AT), END],
    outcome: /^NO_SPACE/,
  },
  {
    what: 'the first of two errors',
    type: READ,
    stream: [error(12, 'one'), error(5, 'two'), END],
    outcome: /^NO_MEMORY/,
  },
  {
    what: 'extents',
    type: BLOCK_STATUS,
    stream: [status(3, 2, 0, 2, 3, 2, 2, 2, 1), END],
    outcome: 'done data 100+2 hole 102+2 zero 104+2 data 106+2',
  },
  {
    what: 'equal neighbours as one',
    type: BLOCK_STATUS,
    stream: [status(3, 2, 3, 6, 3), END],
    outcome: 'done hole 100+8',
  },
  {
    what: 'a last extent that reaches beyond',
    type: BLOCK_STATUS,
    stream: [status(3, 4096, 0), END],
    outcome: 'done data 100+8',
  },
  {
    what: 'less than was asked for',
    type: BLOCK_STATUS,
    stream: [status(3, 1, 3), END],
    outcome: 'done hole 100+1',
  },
  { what: 'a request that needs no data', type: 1, stream: [END], outcome: 'done' },
  { what: 'a simple reply to it', type: 1, stream: [u32(0x67446698, 0, 0, 7)], outcome: 'done' },
  { what: 'a simple error', type: READ, stream: [u32(0x67446698, 22, 0, 7)], outcome: /^INVALID/ },
]
for (const { what, type, stream, outcome, into } of cases) {
  void t.test(`a reply is understood however it is cut: ${what}`, (t) => {
    const bytes = Buffer.concat(stream)
    for (let cut = 1; cut <= bytes.length; cut += 1) {
      const told = receive(type, bytes, cut)
      t.equal(told.violation, undefined)
      t.match(told.outcome, outcome)
      if (into !== undefined) t.equal(told.into, into)
    }
    t.end()
  })
}

const broken: readonly [string, number, readonly Buffer[], RegExp][] = [
  ['bytes left out', READ, [data(100, 'abc'), END], /leaves out/],
  ['nothing at all', READ, [END], /leaves out/],
  ['bytes given twice', READ, [data(100, 'abcd'), data(103, 'x')], /not asked/],
  ['bytes before', READ, [data(99, 'abcd')], /not asked/],
  ['bytes behind', READ, [data(100, 'abcdefghi')], /not asked/],
  ['data without data', READ, [chunk(DATA, u32(0, 100))], /without data/],
  ['a hole beyond the end', READ, [hole(104, 5)], /not asked/],
  ['an empty hole', READ, [hole(104, 0)], /not asked/],
  ['a hole of the wrong length', READ, [chunk(HOLE, u32(0, 100))], /hole/],
  ['data to a write', 1, [data(100, 'a')], /not asked/],
  ['extents to a read', READ, [status(3, 8, 0)], /not asked/],
  ['extents of another context', BLOCK_STATUS, [status(4, 8, 0)], /context/],
  ['extents twice', BLOCK_STATUS, [status(3, 4, 0), status(3, 4, 0)], /twice/],
  ['an empty extent', BLOCK_STATUS, [status(3, 0, 0)], /empty/],
  ['too many extents', BLOCK_STATUS, [status(3, 8, 0, 1, 0)], /more/],
  ['half an extent', BLOCK_STATUS, [status(3, 8)], /wrong length/],
  ['no extents', BLOCK_STATUS, [END], /nothing/],
  [
    'a message longer than its chunk',
    READ,
    [chunk(ERROR, Buffer.concat([u32(5), Buffer.from([1, 0])]))],
    /longer/,
  ],
  ['an error that is none', READ, [error(0, '')], /none/],
  ['a short error', READ, [chunk(ERROR, u32(5))], /wrong length/],
  ['an unknown type', READ, [chunk(9, Buffer.alloc(3))], /unknown/],
  ['content where there is none', READ, [chunk(NONE, Buffer.alloc(1))], /content/],
  ['content without end', READ, [u32(0x668e33ef, ERROR, 0, 7, 2 ** 31)], /2147483648/],
  ['another cookie', READ, [chunk(NONE, Buffer.alloc(0), { cookie: 8 })], /not asked/],
  ['a simple success where data is due', READ, [u32(0x67446698, 0, 0, 7)], /not asked/],
  ['a simple success where extents are due', BLOCK_STATUS, [u32(0x67446698, 0, 0, 7)], /not asked/],
  ['no magic', READ, [Buffer.alloc(20)], /magic/],
]
for (const [what, type, stream, says] of broken) {
  void t.test(`a reply ends the connection, and is no success: ${what}`, (t) => {
    const bytes = Buffer.concat(stream)
    for (let cut = 1; cut <= bytes.length; cut += 1) {
      const told = receive(type, bytes, cut)
      t.match(told.violation, says)
      t.equal(told.outcome, 'none')
    }
    t.end()
  })
}

void t.test('whatever a server sends, a read succeeds only with every byte of it', (t) => {
  const piece = fc.oneof(
    fc
      .tuple(fc.integer({ min: 98, max: 109 }), fc.integer({ min: 1, max: 9 }))
      .map(([at, length]) => data(at, 'x'.repeat(length))),
    fc.tuple(fc.integer({ min: 98, max: 109 }), fc.nat(9)).map(([at, length]) => hole(at, length)),
    fc.constantFrom(END, error(5, 'no'), data(100, 'xxxx'), hole(104, 4)),
    fc.uint8Array({ maxLength: 30 }).map((bytes) => Buffer.from(bytes)),
  )
  let successes = 0
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 6 }),
      fc.integer({ min: 1, max: 60 }),
      (pieces, cut) => {
        const told = receive(READ, Buffer.concat(pieces), cut)
        if (told.outcome !== 'done') return
        successes += 1
        if (/[^x\0]/.test(told.into)) throw new Error(`success with ${told.into}`)
      },
    ),
    { numRuns: 5000 },
  )
  t.ok(successes > 0)
  t.end()
})

function optionReply(option: number, type: number, content: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u32(0x0003e889, 0x045565a9, option, type, content.length), content])
}

function shake(replies: readonly Buffer[]): {
  outcome: ClientOutcome | undefined
  options: number[]
} {
  const handshake = new ClientHandshake({ kind: 'attach', exportName: 'disk', structured: true })
  const options: number[] = []
  let outcome: ClientOutcome | undefined
  for (const bytes of [greeting(), ...replies]) {
    const step = handshake.push(bytes)
    for (const send of step.sends) if (send.length >= 16) options.push(send.readUInt32BE(8))
    outcome = step.outcome
  }
  return { outcome, options }
}

const [EXPORT_NAME, GO, STRUCTURED, SET_CONTEXT] = [1, 7, 8, 10] as const
const [ACK, INFO, CONTEXT, UNSUP] = [1, 3, 4, 2 ** 31 + 1] as const
const exportInfo = optionReply(
  GO,
  INFO,
  Buffer.concat([Buffer.alloc(6), u32(4096), Buffer.from([0, 1])]),
)
const granted = [exportInfo, optionReply(GO, ACK)]
const allocation = optionReply(
  SET_CONTEXT,
  CONTEXT,
  Buffer.concat([u32(42), Buffer.from('base:allocation')]),
)
const other = optionReply(SET_CONTEXT, CONTEXT, Buffer.concat([u32(43), Buffer.from('other')]))

for (const { what, replies, options, info } of [
  {
    what: 'a server that has everything',
    replies: [
      optionReply(STRUCTURED, ACK),
      other,
      allocation,
      optionReply(SET_CONTEXT, ACK),
      ...granted,
    ],
    options: [STRUCTURED, SET_CONTEXT, GO],
    info: { structured: true, allocationId: 42 },
  },
  {
    what: 'a server without the context',
    replies: [optionReply(STRUCTURED, ACK), optionReply(SET_CONTEXT, ACK), ...granted],
    options: [STRUCTURED, SET_CONTEXT, GO],
    info: { structured: true, allocationId: undefined },
  },
  {
    what: 'a server without contexts',
    replies: [optionReply(STRUCTURED, ACK), optionReply(SET_CONTEXT, UNSUP), ...granted],
    options: [STRUCTURED, SET_CONTEXT, GO],
    info: { structured: true, allocationId: undefined },
  },
  {
    what: 'a server without structured replies',
    replies: [optionReply(STRUCTURED, UNSUP), ...granted],
    options: [STRUCTURED, GO],
    info: { structured: false, allocationId: undefined },
  },
  {
    what: 'a server without GO',
    replies: [
      optionReply(STRUCTURED, UNSUP),
      optionReply(GO, UNSUP),
      Buffer.concat([u32(0, 4096), Buffer.from([0, 1])]),
    ],
    options: [STRUCTURED, GO, EXPORT_NAME],
    info: { structured: false, allocationId: undefined },
  },
]) {
  void t.test(`the handshake takes what there is: ${what}`, (t) => {
    const { outcome, options: asked } = shake(replies.map((reply) => Buffer.from(reply)))
    t.strictSame(asked, options)
    t.match(outcome, { kind: 'attached', info: { size: 4096 } })
    const got = outcome?.kind === 'attached' ? outcome.info : undefined
    t.equal(got?.structured, info.structured)
    t.equal(got?.allocationId, info.allocationId)
    t.end()
  })
}

void t.test('a context without a number ends the handshake', (t) => {
  const { outcome } = shake([
    optionReply(STRUCTURED, ACK),
    optionReply(SET_CONTEXT, CONTEXT, Buffer.alloc(2)),
  ])
  t.ok(outcome?.kind === 'failed' && outcome.fault instanceof Fault)
  t.end()
})

void t.test('with TLS nothing is said in the clear but the wish for it', (t) => {
  const [STARTTLS, LIST_AS_INJECTED] = [5, 3]
  const goal = { kind: 'attach', exportName: 'secret', structured: true, tls: true } as const
  const begin = (): ClientHandshake => {
    const handshake = new ClientHandshake(goal)
    const { sends } = handshake.push(greeting())
    const said = Buffer.concat(sends)
    t.notOk(said.includes('secret'))
    t.equal(said.readUInt32BE(4 + 8), STARTTLS)
    return handshake
  }
  const willing = begin()
  const ack = optionReply(STARTTLS, ACK)
  const step = willing.push(Buffer.concat([ack, optionReply(LIST_AS_INJECTED, ACK)]))
  t.equal(step.outcome?.kind, 'startTls')
  t.equal(step.consumed, ack.length, 'what was put behind it is not taken')
  const [next] = willing.secured()
  t.equal(next?.readUInt32BE(8), STRUCTURED, 'now the handshake goes on')

  const unwilling = begin().push(optionReply(STARTTLS, UNSUP)).outcome
  t.equal(unwilling?.kind === 'failed' && unwilling.fault.code, 'NOT_SUPPORTED')
  const old = greeting()
  old.writeUInt16BE(0, 16)
  const { outcome, sends } = new ClientHandshake(goal).push(old)
  t.equal(outcome?.kind === 'failed' && outcome.fault.code, 'NOT_SUPPORTED')
  t.notOk(Buffer.concat(sends).includes('secret'))
  t.end()
})
