/**
 * Random handshakes and random requests, each against what the specification has to say of them. What once failed stays
 * in the lists of examples.
 */

import fc from 'fast-check'
import t from 'tap'

import { KiB } from '../../core/units.ts'
import { parseClientRule } from '../../nbd/access.ts'
import { NEGOTIATION_LIMITS, Negotiation } from '../../nbd/negotiation.ts'
import { CLIENT_FLAGS, stage, tableOf, type RawClient } from './harness.ts'
import { ALL_CAPABILITIES, MemoryDevice } from './memory-device.ts'
import {
  BLOCK_STATUS,
  CACHE,
  CHUNKED,
  DF,
  FLUSH,
  PAYLOAD_LEN,
  READ,
  REQ_ONE,
  TRIM,
  WRITE,
  WRITE_ZEROES,
  ask,
  chunkOption,
  metaPayload,
  option,
  reply,
  setContexts,
  type Chunk,
  type Chunked,
} from './wire.ts'

const SIZE = 256 * KiB
const FUA = 1
const NO_HOLE = 2
const FAST_ZERO = 16

function fuzzedDevice(): MemoryDevice {
  const device = new MemoryDevice(SIZE)
  device.can = { ...ALL_CAPABILITIES, status: true, cache: true }
  device.maps = { depth: (at, length) => [{ at, length, value: 1 }] }
  return device
}

// Handshake

interface Said {
  readonly type: number
  readonly of: number
}

function said(replies: readonly Buffer[]): Said[] {
  const raw = Buffer.concat(replies)
  const found: Said[] = []
  for (let at = 0; at < raw.length; at += 20 + raw.readUInt32BE(at + 16)) {
    if (raw.readBigUInt64BE(at) !== 0x3e889045565a9n) throw new Error('a reply without its magic')
    found.push({ of: raw.readUInt32BE(at + 8), type: raw.readUInt32BE(at + 12) })
  }
  return found
}

const GO = 7
const ABORT = 2
const exportName = fc.constantFrom('disk', '', 'nope', 'disk\0', 'x'.repeat(5000))
const query = fc.constantFrom('base:', 'base:allocation', 'qemu:allocation-depth', 'x', '')
const optionBytes = fc.oneof(
  fc
    .tuple(fc.nat(13), fc.uint8Array({ maxLength: 50 }))
    .map(([type, payload]) => ({ type, payload: Buffer.from(payload) })),
  fc
    .tuple(fc.constantFrom(9, 10), exportName, fc.array(query, { maxLength: 4 }))
    .map(([type, name, queries]) => ({ type, payload: metaPayload(name, ...queries) })),
  fc.tuple(fc.constantFrom(6, GO), exportName).map(([type, name]) => {
    const text = Buffer.from(name)
    const payload = Buffer.alloc(6 + text.length)
    payload.writeUInt32BE(text.length)
    text.copy(payload, 4)
    return { type, payload }
  }),
  fc.constantFrom(3, 8, 11).map((type) => ({ type, payload: Buffer.alloc(0) })),
)

void t.test('every option of any handshake is answered once, however it is cut', (t) => {
  const exports = tableOf(['disk', fuzzedDevice()])
  fc.assert(
    fc.property(
      fc.array(optionBytes, { maxLength: 12 }),
      fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 20 }),
      (options, cuts) => {
        const sent = options.map(({ type, payload }) => option(type, payload))
        const whole = new Negotiation(exports).push(Buffer.concat([CLIENT_FLAGS, ...sent]))
        const ended = whole.outcome !== undefined
        const answers = said(whole.replies)
        // The last reply of each option ends it; INFO, SERVER and META_CONTEXT come before that.
        const ends = answers.filter(({ type }) => type === 1 || type >= 2 ** 31)
        const expected = options.map(({ type }) => type)
        t.strictSame(
          ends.map(({ of }) => of),
          ended ? expected.slice(0, ends.length) : expected,
        )
        if (whole.outcome?.kind === 'transmit') t.ok([1, GO].includes(lastOf(options, ends.length)))
        if (whole.outcome?.kind === 'close' && !whole.outcome.fault) t.equal(ends.at(-1)?.of, ABORT)

        const pieces = new Negotiation(exports)
        const bytes = Buffer.concat([CLIENT_FLAGS, ...sent])
        const replies: Buffer[] = []
        for (let at = 0, index = 0; at < bytes.length; index += 1) {
          const end = Math.min(bytes.length, at + (cuts[index % cuts.length] ?? 1))
          const step = pieces.push(bytes.subarray(at, end))
          replies.push(...step.replies)
          if (step.outcome !== undefined) break
          at = end
        }
        t.ok(Buffer.concat(replies).equals(Buffer.concat(whole.replies)))
      },
    ),
    { numRuns: 400 },
  )
  t.end()
})

const STARTTLS = 5
const TLS_REQD = 2 ** 31 + 5
const PRIVATE = 'private'
const someExport = fc.constantFrom('disk', PRIVATE, 'nope', '')
const optionAroundTls = fc.oneof(
  { weight: 2, arbitrary: optionBytes },
  { weight: 1, arbitrary: fc.constant({ type: STARTTLS, payload: Buffer.alloc(0) }) },
  {
    weight: 2,
    arbitrary: fc.tuple(fc.constantFrom(1, 6, GO, 9, 10), someExport).map(([type, name]) => {
      if (type === 1) return { type, payload: Buffer.from(name) }
      if (type > GO) return { type, payload: metaPayload(name, 'base:allocation') }
      const payload = Buffer.alloc(6 + name.length)
      payload.writeUInt32BE(name.length)
      payload.write(name, 4)
      return { type, payload }
    }),
  },
)

void t.test('no handshake around STARTTLS gets more than it may', (t) => {
  const device = fuzzedDevice()
  const shared = { description: '', device }
  const list = [
    { ...shared, name: 'disk' },
    { ...shared, name: PRIVATE, clients: [parseClientRule('psk:vm1')] },
  ]
  const exports = {
    find: (name: string) => list.find((one) => one.name === name),
    list: () => list,
  }
  fc.assert(
    fc.property(
      fc.constantFrom('none' as const, 'offered' as const, 'required' as const),
      fc.constantFrom('vm1', 'vm2'),
      fc.array(fc.tuple(optionAroundTls, fc.boolean()), { maxLength: 12 }),
      (mode, user, options) => {
        const negotiation = new Negotiation(exports, NEGOTIATION_LIMITS, mode)
        negotiation.push(CLIENT_FLAGS)
        let secured = false
        let chunks = false
        // Options of which the boolean is set come in one piece with the next one.
        let piece = Buffer.alloc(0)
        for (const [{ type, payload }, more] of options) {
          piece = Buffer.concat([piece, option(type, payload)])
          if (more) continue
          const { replies, outcome, consumed } = negotiation.push(piece)
          const left = piece.length - consumed
          piece = Buffer.alloc(0)
          // EXPORT_NAME is answered without a header.
          const answers = said(replies.filter((reply) => reply.readUInt32BE(0) === 0x3e889))
          const demanded = answers.some((answer) => answer.type === TLS_REQD)
          if (demanded) t.ok(!secured && mode !== 'none', 'TLS is demanded where it can be started')
          if (mode === 'required' && !secured)
            t.ok(
              answers.every(
                (answer) => answer.type !== 2 && answer.type !== 3 && answer.type !== 4,
              ),
            )
          chunks ||= answers.some((answer) => answer.type === 1 && [8, 11].includes(answer.of))
          if (outcome?.kind === 'startTls') {
            t.ok(!secured && mode !== 'none' && left === 0, 'TLS begins on a clean line')
            secured = true
            chunks = false
            negotiation.secured({ kind: 'key', user })
          } else if (outcome?.kind === 'transmit') {
            t.ok(secured || mode !== 'required', 'nothing in the clear where TLS is required')
            t.ok(outcome.chosen.name !== PRIVATE || (secured && user === 'vm1'))
            t.ok(outcome.format.kind === 'simple' || chunks, 'nothing from before TLS')
          }
          if (outcome !== undefined && outcome.kind !== 'startTls') return
        }
      },
    ),
    { numRuns: 1500 },
  )
  t.end()
})

/** The option that ended a handshake in which `answered` options were answered with headers. */
function lastOf(options: readonly { type: number }[], answered: number): number {
  return options[answered]?.type === 1 ? 1 : (options[answered - 1]?.type ?? 0)
}

// Transmission

interface Request {
  readonly type: number
  readonly flags: number
  readonly at: number
  readonly length: number
  readonly fill: number
}

const anywhere = fc.oneof(
  fc.nat(SIZE + 10),
  fc.constantFrom(0, SIZE - 1, SIZE, SIZE + 1, 2 ** 32, 2 ** 40, 2 ** 53 - 1),
)
const someLength = fc.oneof(fc.nat(300), fc.constantFrom(0, 1, 4096, 64 * KiB, SIZE, SIZE + 1))
const anyRequest: fc.Arbitrary<Request> = fc.record({
  type: fc.oneof(fc.constantFrom(0, 1, 3, 4, 5, 6, 7), fc.constantFrom(8, 9, 200)),
  flags: fc.oneof(
    { weight: 3, arbitrary: fc.constant(0) },
    { weight: 1, arbitrary: fc.constantFrom(FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, 64, 0x8000) },
  ),
  at: anywhere,
  length: someLength,
  fill: fc.nat(255),
})

const ALLOWED: Readonly<Record<number, number>> = {
  [READ]: FUA | DF,
  [WRITE]: FUA,
  [FLUSH]: FUA,
  [TRIM]: FUA,
  [CACHE]: FUA,
  [WRITE_ZEROES]: FUA | NO_HOLE | FAST_ZERO,
  [BLOCK_STATUS]: FUA | REQ_ONE,
}

/** What the specification has for a request: 0, or its error. */
function expectedError({ type, flags, at, length }: Request): number {
  const allowed = ALLOWED[type]
  if (allowed === undefined || (flags & ~allowed) !== 0) return 22
  if (type === FLUSH) return at === 0 && length === 0 ? 0 : 22
  if (length === 0) return type === BLOCK_STATUS ? 22 : 0
  if (at + length <= SIZE) return 0
  return type === WRITE || type === WRITE_ZEROES ? 28 : 22
}

function bytesOf(form: Chunked, request: Request, cookie: number): Buffer {
  const { type, flags, at, length, fill } = request
  const header = ask(form, type, cookie, at, length, flags)
  return type === WRITE ? Buffer.concat([header, Buffer.alloc(length, fill)]) : header
}

/** What a reply to `request` must be, given the disk before it; changes the disk as the request does. */
function check(request: Request, chunks: readonly Chunk[], disk: Buffer): string | undefined {
  const { type, at, length, fill } = request
  const error = expectedError(request)
  const [first] = chunks
  if (first === undefined) return 'no chunk'
  if (error !== 0) {
    const { content } = first
    if (chunks.length !== 1 || content.what !== 'error') return `no error ${error}`
    return content.error === error ? undefined : `error ${content.error}, not ${error}`
  }
  if (chunks.some(({ content }) => content.what === 'error')) return 'an error'
  if (length > 0 && type === WRITE) disk.fill(fill, at, at + length)
  if (length > 0 && (type === TRIM || type === WRITE_ZEROES)) disk.fill(0, at, at + length)
  if (type === READ && length > 0) {
    const { content } = first
    const whole = content.what === 'data' && content.at === at
    return whole && content.data.equals(disk.subarray(at, at + length)) ? undefined : 'other data'
  }
  if (type === BLOCK_STATUS) {
    const told = chunks.map(({ content }) => (content.what === 'status' ? content.runs : []))
    const sums = told.map((runs) => runs.reduce((sum, [run]) => sum + run, 0))
    return sums.length === 2 && sums.every((sum) => sum === length) ? undefined : 'other statuses'
  }
  return first.content.what === 'none' ? undefined : 'more than nothing'
}

async function converse(
  client: RawClient,
  form: Chunked,
  requests: Request[],
  disk: Buffer,
): Promise<void> {
  client.send(...requests.map((request, cookie) => bytesOf(form, request, cookie)))
  for (const [cookie, request] of requests.entries()) {
    const chunks = await reply(client, form)
    const wrong = chunks.every((chunk) => chunk.cookie === BigInt(cookie))
      ? check(request, chunks, disk)
      : 'a reply to another request'
    if (wrong !== undefined) throw new Error(`${JSON.stringify(request)}: ${wrong}`)
  }
}

const EXAMPLES: [Request[]][] = [
  [[{ type: READ, flags: 0, at: SIZE, length: 0, fill: 0 }]],
  [[{ type: WRITE_ZEROES, flags: 0, at: 2 ** 53 - 1, length: 0, fill: 0 }]],
  [[{ type: BLOCK_STATUS, flags: REQ_ONE, at: SIZE - 1, length: 1, fill: 0 }]],
  [[{ type: WRITE, flags: FUA, at: 2 ** 53 - 1, length: 4096, fill: 1 }]],
]

for (const form of CHUNKED) {
  void t.test(`any requests get the answers of the specification (${form})`, async (t) => {
    const { device, rawAttached } = await stage(t, { device: fuzzedDevice() })
    const contexts = setContexts('disk', 'base:allocation', 'qemu:allocation-depth')
    const client = await rawAttached(chunkOption(form), contexts)
    await fc.assert(
      fc.asyncProperty(fc.array(anyRequest, { maxLength: 30 }), async (requests) => {
        const disk = Buffer.from(device.bytes)
        await converse(client, form, requests, disk)
        t.ok(device.bytes.equals(disk), 'nothing else was changed')
      }),
      { numRuns: 150, examples: EXAMPLES },
    )
  })
}

void t.test(
  'payloads of any command and length are taken or drained, never mistaken',
  async (t) => {
    const { device, rawAttached } = await stage(t, { device: fuzzedDevice() })
    const contexts = setContexts('disk', 'base:allocation', 'qemu:allocation-depth')
    const client = await rawAttached(chunkOption('extended'), contexts)
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({
            type: fc.constantFrom(0, 3, 4, 5, 6, 7, 8, 200),
            payload: fc.oneof(
              fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes)),
              // What could be a choice of contexts.
              fc.tuple(fc.nat(600), fc.array(fc.nat(4), { maxLength: 4 })).map(([length, ids]) => {
                const bytes = Buffer.alloc(8 + 4 * ids.length)
                bytes.writeUInt32BE(length, 4)
                ids.forEach((id, index) => bytes.writeUInt32BE(id, 8 + 4 * index))
                return bytes
              }),
              // What could be a request, were it not payload.
              fc.nat(200).map((length) => ask('extended', WRITE_ZEROES, 1, 0, length)),
            ),
          }),
          { maxLength: 20 },
        ),
        async (requests) => {
          device.calls.length = 0
          for (const { type, payload } of requests) {
            const header = ask('extended', type, 7, 0, payload.length, PAYLOAD_LEN)
            client.send(header, payload)
            const [first] = await reply(client, 'extended')
            if (first?.content.what === 'status') t.equal(type, BLOCK_STATUS)
            else t.ok(first?.content.what === 'error' && first.content.error === 22)
          }
          t.ok(device.calls.every((call) => call.startsWith('status')))
        },
      ),
      { numRuns: 150 },
    )
  },
)
