/** The options that shape the transmission: chunked replies, extended headers, metadata contexts. */

import fc from 'fast-check'
import t from 'tap'

import { KiB } from '../../core/units.ts'
import { Negotiation, type NegotiationOutcome } from '../../nbd/negotiation.ts'
import { NBD_OPT_GO, NBD_OPT_INFO } from '../../nbd/protocol.ts'
import { CLIENT_FLAGS, tableOf } from './harness.ts'
import { ALL_CAPABILITIES, MemoryDevice } from './memory-device.ts'
import { EXTENDED_HEADERS, STRUCTURED_REPLY, metaPayload, option, setContexts } from './wire.ts'

const ACK = 1
const INFO = 3
const META_CONTEXT = 4
const ERR_INVALID = 2 ** 31 + 3
const ERR_UNKNOWN = 2 ** 31 + 6
const ERR_TOO_BIG = 2 ** 31 + 9
const ERR_EXT_HEADER_REQD = 2 ** 31 + 10

const plain = new MemoryDevice(64 * KiB)
const mapped = new MemoryDevice(64 * KiB)
mapped.maps = {
  dirty: (at, length) => [{ at, length, value: 1 }],
  depth: (at, length) => [{ at, length, value: 2 }],
}
const exports = tableOf(['plain', plain], ['mapped', mapped])

/** The name alone, no information wanted. */
function choose(type: number, name: string): Buffer {
  const payload = Buffer.alloc(6 + name.length)
  payload.writeUInt32BE(name.length)
  payload.write(name, 4)
  return option(type, payload)
}

interface Said {
  readonly type: number
  readonly data: Buffer
}

function negotiate(...options: Buffer[]): {
  replies: Said[]
  outcome: NegotiationOutcome | undefined
} {
  const step = new Negotiation(exports).push(Buffer.concat([CLIENT_FLAGS, ...options]))
  const raw = Buffer.concat(step.replies)
  const replies: Said[] = []
  for (let at = 0; at < raw.length; at += 20 + raw.readUInt32BE(at + 16)) {
    const data = raw.subarray(at + 20, at + 20 + raw.readUInt32BE(at + 16))
    replies.push({ type: raw.readUInt32BE(at + 12), data })
  }
  return { replies, outcome: step.outcome }
}

const types = (replies: readonly Said[]): number[] => replies.map(({ type }) => type)

function contextsIn(replies: readonly Said[]): [number, string][] {
  return replies
    .filter(({ type }) => type === META_CONTEXT)
    .map(({ data }) => [data.readUInt32BE(0), data.toString('utf8', 4)])
}

/** The transmission flags of the last export described. */
function flagsIn(replies: readonly Said[]): number {
  const described = replies.filter(({ type, data }) => type === INFO && data.length === 12)
  return described.at(-1)?.data.readUInt16BE(10) ?? 0
}

const DF_FLAG = 1 << 7
const CACHE_FLAG = 1 << 10
const PAYLOAD_FLAG = 1 << 12

void t.test('what was negotiated is what the transmission gets', (t) => {
  const go = choose(NBD_OPT_GO, 'plain')
  const cases: [string, Buffer[], string, number][] = [
    ['nothing', [], 'simple', 0],
    ['structured replies', [STRUCTURED_REPLY], 'structured', DF_FLAG],
    ['the same twice', [STRUCTURED_REPLY, STRUCTURED_REPLY], 'structured', DF_FLAG],
    ['extended headers', [EXTENDED_HEADERS], 'extended', DF_FLAG],
    ['both', [STRUCTURED_REPLY, EXTENDED_HEADERS], 'extended', DF_FLAG],
  ]
  for (const [what, options, kind, flags] of cases) {
    const { replies, outcome } = negotiate(...options, go)
    t.ok(outcome?.kind === 'transmit' && outcome.format.kind === kind, what)
    t.equal(flagsIn(replies) & (DF_FLAG | PAYLOAD_FLAG), flags, what)
  }
  t.end()
})

void t.test('extended headers stay when structured replies are asked for later', (t) => {
  const { replies, outcome } = negotiate(
    EXTENDED_HEADERS,
    STRUCTURED_REPLY,
    choose(NBD_OPT_GO, 'plain'),
  )
  t.strictSame(types(replies), [ACK, ERR_EXT_HEADER_REQD, INFO, INFO, ACK])
  t.ok(outcome?.kind === 'transmit' && outcome.format.kind === 'extended')
  t.end()
})

void t.test('CACHE is offered by devices that can prepare', (t) => {
  const device = new MemoryDevice(512)
  device.can = { ...ALL_CAPABILITIES, cache: true }
  const step = new Negotiation(tableOf(['d', device])).push(
    Buffer.concat([CLIENT_FLAGS, choose(NBD_OPT_GO, 'd')]),
  )
  t.equal(Buffer.concat(step.replies).readUInt16BE(30) & CACHE_FLAG, CACHE_FLAG)
  t.equal(flagsIn(negotiate(choose(NBD_OPT_GO, 'plain')).replies) & CACHE_FLAG, 0)
  t.end()
})

const listings: [string, string, string[], string[]][] = [
  ['no query', 'mapped', [], ['base:allocation', 'qemu:allocation-depth', 'colotap:dirty']],
  ['no query, on a device without maps', 'plain', [], ['base:allocation']],
  ['the namespace base', 'mapped', ['base:'], ['base:allocation']],
  ['the namespace qemu', 'mapped', ['qemu:'], ['qemu:allocation-depth']],
  ['the namespace colotap', 'mapped', ['colotap:'], ['colotap:dirty']],
  ['a namespace the device has nothing in', 'plain', ['colotap:', 'qemu:'], []],
  ['a name', 'mapped', ['colotap:dirty'], ['colotap:dirty']],
  ['a name twice', 'mapped', ['base:allocation', 'base:'], ['base:allocation']],
  ['an unknown leaf', 'mapped', ['base:nothing'], []],
  ['an unknown namespace', 'mapped', ['x-other:all', 'qemu:dirty-bitmap:b'], []],
  ['a query without a colon', 'mapped', ['base', ''], []],
]
for (const [what, name, queries, expected] of listings) {
  void t.test(`listed for ${what}`, (t) => {
    const { replies } = negotiate(STRUCTURED_REPLY, option(9, metaPayload(name, ...queries)))
    t.strictSame(
      contextsIn(replies),
      expected.map((context) => [0, context]),
    )
    t.equal(replies.at(-1)?.type, ACK)
    t.end()
  })
}

const selections: [string, string, string[], string[]][] = [
  ['no query', 'mapped', [], []],
  ['a wildcard', 'mapped', ['base:', 'colotap:'], []],
  ['one name', 'plain', ['base:allocation'], ['base:allocation']],
  ['names, one twice', 'mapped', ['colotap:dirty', 'colotap:dirty'], ['colotap:dirty']],
  [
    'a name the device does not know',
    'plain',
    ['colotap:dirty', 'base:allocation'],
    ['base:allocation'],
  ],
  [
    'all',
    'mapped',
    ['colotap:dirty', 'base:allocation', 'qemu:allocation-depth'],
    ['base:allocation', 'qemu:allocation-depth', 'colotap:dirty'],
  ],
]
for (const [what, name, queries, expected] of selections) {
  void t.test(`selected by ${what}`, (t) => {
    for (const chunks of [STRUCTURED_REPLY, EXTENDED_HEADERS]) {
      const { replies, outcome } = negotiate(
        chunks,
        setContexts(name, ...queries),
        choose(NBD_OPT_INFO, name),
        choose(NBD_OPT_GO, name),
      )
      const contexts = contextsIn(replies)
      t.strictSame(
        contexts.map(([, context]) => context),
        expected,
      )
      t.equal(new Set(contexts.map(([id]) => id)).size, expected.length, 'each has its own number')
      t.ok(outcome?.kind === 'transmit')
      if (outcome?.kind === 'transmit')
        t.strictSame(
          outcome.contexts.map(({ id, name }) => [id, name]),
          contexts,
        )
      const filters = chunks === EXTENDED_HEADERS && expected.length > 0
      t.equal(flagsIn(replies) & PAYLOAD_FLAG, filters ? PAYLOAD_FLAG : 0)
    }
    t.end()
  })
}

const cancelled: [string, Buffer[]][] = [
  ['by another selection of nothing', [setContexts('plain')]],
  ['by a failed selection', [setContexts('nope', 'base:allocation')]],
  ['by a malformed selection', [option(10, Buffer.alloc(3))]],
  ['by a selection for another export', [setContexts('mapped', 'base:allocation')]],
]
for (const [what, options] of cancelled) {
  void t.test(`a selection is cancelled ${what}`, (t) => {
    const { outcome } = negotiate(
      STRUCTURED_REPLY,
      setContexts('plain', 'base:allocation'),
      ...options,
      choose(NBD_OPT_GO, 'plain'),
    )
    t.ok(outcome?.kind === 'transmit' && outcome.contexts.length === 0)
    t.end()
  })
}

const good = metaPayload('plain', 'base:allocation')
const changed = (at: number, value: number): Buffer => {
  const payload = Buffer.from(good)
  payload.writeUInt32BE(value, at)
  return payload
}
const malformed: [string, Buffer, number][] = [
  ['nothing', Buffer.alloc(0), ERR_INVALID],
  ['a name cut short', good.subarray(0, 6), ERR_INVALID],
  ['no number of queries', good.subarray(0, 9), ERR_INVALID],
  ['a query cut short', good.subarray(0, good.length - 1), ERR_INVALID],
  ['bytes left over', Buffer.concat([good, Buffer.alloc(1)]), ERR_INVALID],
  ['2^32 - 1 queries', changed(9, 2 ** 32 - 1), ERR_INVALID],
  ['a query of 2^32 - 1 bytes', changed(13, 2 ** 32 - 1), ERR_INVALID],
  ['a name of 4097 bytes', metaPayload('x'.repeat(4097)), ERR_TOO_BIG],
  ['a query of 4097 bytes', metaPayload('plain', 'x'.repeat(4097)), ERR_TOO_BIG],
  ['a query with a NUL', metaPayload('plain', 'base:\0'), ERR_INVALID],
  ['an export that is not there', metaPayload('nope', 'base:'), ERR_UNKNOWN],
  ['more than an option may have', Buffer.alloc(16 * KiB + 1), ERR_TOO_BIG],
]
for (const [what, payload, error] of malformed) {
  void t.test(`a query of contexts with ${what} is refused`, (t) => {
    for (const type of [9, 10]) {
      const { replies } = negotiate(STRUCTURED_REPLY, option(type, payload), STRUCTURED_REPLY)
      t.strictSame(types(replies), [ACK, error, ACK], `option ${type}`)
    }
    t.end()
  })
}

void t.test('no payload of these options breaks the server or goes unanswered', (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom(8, 9, 10, 11),
      fc.oneof(
        fc.uint8Array({ maxLength: 80 }).map((bytes) => Buffer.from(bytes)),
        fc
          .tuple(fc.string(), fc.array(fc.string(), { maxLength: 5 }), fc.nat(), fc.nat(255))
          .map(([name, queries, at, byte]) => {
            const payload = metaPayload(name, ...queries)
            payload[at % payload.length] = byte
            return payload
          }),
      ),
      (type, payload) => {
        const { replies, outcome } = negotiate(STRUCTURED_REPLY, option(type, payload))
        t.equal(outcome, undefined)
        t.ok(replies.length >= 2)
      },
    ),
    { numRuns: 500 },
  )
  t.end()
})
