/** STARTTLS in the handshake, and what is answered before it and after it, in each mode that the specification has. */

import t from 'tap'

import { KiB, MiB } from '../../core/units.ts'
import { parseClientRule } from '../../nbd/access.ts'
import { goPayload, optionRequest } from '../../nbd/client-handshake.ts'
import type { ExportTable } from '../../nbd/export.ts'
import { NEGOTIATION_LIMITS, Negotiation, type NegotiationStep } from '../../nbd/negotiation.ts'
import type { PeerIdentity } from '../../net/peer-identity.ts'
import { CLIENT_FLAGS } from './harness.ts'
import { MemoryDevice } from './memory-device.ts'
import { EXTENDED_HEADERS, STRUCTURED_REPLY, metaPayload, option, setContexts } from './wire.ts'

const ACK = 1
const ERROR = 2 ** 31
const UNSUP = ERROR + 1
const POLICY = ERROR + 2
const INVALID = ERROR + 3
const TLS_REQD = ERROR + 5
const UNKNOWN = ERROR + 6

const STARTTLS = option(5)
const VM1: PeerIdentity = { kind: 'key', user: 'vm1' }
const VM2: PeerIdentity = { kind: 'key', user: 'vm2' }

const go = (name: string): Buffer => optionRequest(7, goPayload(name, []))
const info = (name: string): Buffer => optionRequest(6, goPayload(name, []))
const exportName = (name: string): Buffer => option(1, Buffer.from(name))

/** `public` for all, `private` for vm1. */
function exportsOf(restricted: boolean): ExportTable {
  const device = new MemoryDevice(1 * MiB)
  const exports = [
    { name: 'public', description: '', device },
    { name: 'private', description: '', device, clients: [parseClientRule('psk:vm1')] },
  ].slice(0, restricted ? 2 : 1)
  return { find: (name) => exports.find((one) => one.name === name), list: () => exports }
}

type Mode = 'none' | 'offered' | 'required'

function negotiation(mode: Mode, restricted = true): Negotiation {
  const made = new Negotiation(exportsOf(restricted), NEGOTIATION_LIMITS, mode)
  made.push(CLIENT_FLAGS)
  return made
}

/** One over which TLS was started, after `before` in the clear. */
function secured(
  who: PeerIdentity,
  before: readonly Buffer[] = [],
  mode: Mode = 'offered',
): Negotiation {
  const made = negotiation(mode)
  for (const each of before) made.push(each)
  t.equal(made.push(STARTTLS).outcome?.kind, 'startTls')
  made.secured(who)
  return made
}

/** The type of the last reply, which ends the answer to an option. */
function verdict({ replies }: NegotiationStep): number | undefined {
  return replies.at(-1)?.readUInt32BE(12)
}

function names({ replies }: NegotiationStep): string[] {
  return replies
    .filter((reply) => reply.readUInt32BE(12) === 2)
    .map((reply) => reply.toString('utf8', 24, 24 + reply.readUInt32BE(20)))
}

void t.test('STARTTLS is granted once, and where TLS is there', (t) => {
  const none = negotiation('none').push(STARTTLS)
  t.equal(verdict(none), UNSUP)
  t.equal(none.outcome, undefined)
  for (const mode of ['offered', 'required'] as const) {
    const made = negotiation(mode)
    const step = made.push(STARTTLS)
    t.strictSame(step.replies, [], 'the grant is for whoever starts TLS to send')
    t.ok(step.outcome?.kind === 'startTls')
    const granted = step.outcome?.kind === 'startTls' ? step.outcome.granted : Buffer.alloc(0)
    t.equal(granted.toString('hex'), '0003e889045565a9' + '00000005' + '00000001' + '00000000')
    made.secured(VM1)
    const again = made.push(STARTTLS)
    t.equal(verdict(again), INVALID, 'not again')
    t.equal(again.outcome, undefined)
    t.equal(verdict(made.push(go('private'))), ACK, 'and the handshake goes on')
  }
  t.end()
})

void t.test('STARTTLS with data, or of an old client, is refused', (t) => {
  for (const mode of ['offered', 'required'] as const) {
    t.equal(verdict(negotiation(mode).push(option(5, Buffer.alloc(1)))), INVALID)
    const old = new Negotiation(exportsOf(true), NEGOTIATION_LIMITS, mode)
    const step = old.push(Buffer.concat([Buffer.alloc(4), STARTTLS]))
    t.match(step.outcome, { kind: 'close', fault: true })
    t.strictSame(step.replies, [])
  }
  t.end()
})

const REFUSED: [string, Buffer][] = [
  ['LIST', option(3)],
  ['LIST with data', option(3, Buffer.alloc(9))],
  ['INFO', info('public')],
  ['GO', go('public')],
  ['GO of nothing', go('nothing')],
  ['GO without a payload', option(7)],
  ['STRUCTURED_REPLY', STRUCTURED_REPLY],
  ['EXTENDED_HEADERS', EXTENDED_HEADERS],
  ['LIST_META_CONTEXT', option(9, metaPayload('public'))],
  ['SET_META_CONTEXT', setContexts('public', 'base:allocation')],
  ['PEEK_EXPORT', option(4)],
  ['an unknown option', option(77, Buffer.alloc(100))],
  ['an option too long', option(77, Buffer.alloc(20 * KiB))],
  ['option 0', option(0)],
  ['option 2^32-1', option(2 ** 32 - 1)],
]

for (const [what, bytes] of REFUSED) {
  void t.test(
    `where TLS is required, ${what} is refused in the clear, and nothing comes of it`,
    (t) => {
      for (const cut of [1, bytes.length]) {
        const made = negotiation('required')
        const replies: Buffer[] = []
        for (let at = 0; at < bytes.length; at += cut) {
          const step = made.push(bytes.subarray(at, at + cut))
          replies.push(...step.replies)
          t.equal(step.outcome, undefined)
        }
        t.strictSame(
          replies.map((reply) => reply.readUInt32BE(12)),
          [TLS_REQD],
        )
        t.ok(!/public|private/.test(replies.toString()), 'no name is told')
        t.equal(made.push(STARTTLS).outcome?.kind, 'startTls', 'TLS can still be started')
      }
      t.end()
    },
  )
}

void t.test('where TLS is required, EXPORT_NAME in the clear ends the connection', (t) => {
  for (const flags of [CLIENT_FLAGS, Buffer.alloc(4)]) {
    for (const name of ['public', 'nothing']) {
      const made = new Negotiation(exportsOf(true), NEGOTIATION_LIMITS, 'required')
      const { outcome, replies } = made.push(Buffer.concat([flags, exportName(name)]))
      t.match(outcome, { kind: 'close', fault: true })
      t.strictSame(replies, [])
    }
  }
  t.end()
})

void t.test('a client may leave in the clear', (t) => {
  const { outcome, replies } = negotiation('required').push(option(2))
  t.match(outcome, { kind: 'close', fault: false })
  t.equal(replies.length, 1)
  t.end()
})

void t.test('TLS_REQD is never said under TLS, nor where there is no TLS', (t) => {
  for (const [, bytes] of REFUSED) {
    for (const made of [negotiation('none'), secured(VM2), secured(VM2, [], 'required')])
      t.not(verdict(made.push(bytes)), TLS_REQD)
  }
  t.end()
})

void t.test('data behind STARTTLS is refused with it, how far it may have come', (t) => {
  const behind: [string, Buffer][] = [
    ['an option', go('private')],
    ['a byte', Buffer.from([0])],
    ['what could be TLS', Buffer.from([0x16, 3, 1])],
    ['STARTTLS again', STARTTLS],
  ]
  for (const mode of ['offered', 'required'] as const) {
    for (const [what, bytes] of behind) {
      const { outcome, replies } = negotiation(mode).push(Buffer.concat([STARTTLS, bytes]))
      t.match(outcome, { kind: 'close', fault: true, reason: /STARTTLS/ }, what)
      t.strictSame(replies, [], 'it is not granted')
    }
  }
  // In front of it, options are answered in the clear, and mean nothing afterwards.
  const made = negotiation('offered')
  const { outcome, replies } = made.push(Buffer.concat([option(3), STARTTLS]))
  t.equal(outcome?.kind, 'startTls')
  t.equal(replies.length, 2)
  t.end()
})

void t.test('after STARTTLS was granted no byte is consumed before TLS is there', (t) => {
  const made = negotiation('offered')
  made.push(STARTTLS)
  t.match(made.push(go('public')), { consumed: 0, replies: [] })
  t.end()
})

void t.test('what was negotiated before TLS is forgotten', (t) => {
  const contexts = setContexts('public', 'base:allocation')
  for (const [before, kind] of [
    [[STRUCTURED_REPLY, contexts], 'structured'],
    [[EXTENDED_HEADERS, contexts], 'extended'],
  ] as const) {
    const clear = negotiation('offered')
    for (const each of before) clear.push(each)
    t.match(clear.push(go('public')).outcome, { format: { kind }, contexts: [{ id: 1 }] })
    const { outcome } = secured(VM1, before).push(go('public'))
    t.match(outcome, { kind: 'transmit', format: { kind: 'simple' }, contexts: [] })
  }
  const made = secured(VM1, [STRUCTURED_REPLY])
  t.equal(verdict(made.push(contexts)), INVALID, 'chunks have to be negotiated again')
  made.push(STRUCTURED_REPLY)
  made.push(contexts)
  const { outcome } = made.push(go('public'))
  t.match(outcome, { format: { kind: 'structured' }, contexts: [{ id: 1 }] }, 'and can be')
  t.end()
})

void t.test('a payload that was begun in the clear is not continued under TLS', (t) => {
  const made = negotiation('offered')
  const whole = go('public')
  made.push(whole.subarray(0, 20))
  // The rest is the payload of GO, whatever it looks like: STARTTLS has not been asked for.
  const { outcome } = made.push(STARTTLS.subarray(0, whole.length - 20))
  t.not(outcome?.kind, 'startTls')
  t.end()
})

void t.test('the limits on options and bytes are for both parts of a handshake together', (t) => {
  const made = negotiation('offered')
  for (let index = 0; index < 100; index += 1) made.push(option(77))
  t.equal(made.push(STARTTLS).outcome?.kind, 'startTls')
  made.secured(VM1)
  let step = made.push(option(77))
  for (let index = 0; index < 30; index += 1) step = made.push(option(77))
  t.match(step.outcome, { kind: 'close', fault: true })
  t.end()
})

const NAMED: [string, (name: string) => Buffer][] = [
  ['GO', go],
  ['INFO', info],
  ['LIST_META_CONTEXT', (name) => option(9, metaPayload(name))],
  ['SET_META_CONTEXT', (name) => setContexts(name, 'base:allocation')],
]

for (const [what, ask] of NAMED) {
  void t.test(`${what} of an export that is for others says what it says of none`, (t) => {
    const sessions: [string, () => Negotiation, number][] = [
      ['without TLS', () => negotiation('none'), POLICY],
      ['where TLS is offered', () => negotiation('offered'), TLS_REQD],
      ['as another user', () => secured(VM2), POLICY],
      ['as nobody', () => secured({ kind: 'nobody' }), POLICY],
    ]
    for (const [who, begin, expected] of sessions) {
      const [hidden, missing] = ['private', 'missing'].map((name) => {
        const made = begin()
        if (what.includes('META')) made.push(STRUCTURED_REPLY)
        return made.push(ask(name))
      })
      t.equal(verdict(hidden!), expected, who)
      t.equal(
        Buffer.concat(hidden!.replies).toString().replaceAll('private', 'missing'),
        Buffer.concat(missing!.replies).toString(),
        `${who}: word for word`,
      )
      t.equal(hidden!.outcome, undefined)
    }
    const made = secured(VM1)
    made.push(STRUCTURED_REPLY)
    t.equal(verdict(made.push(ask('private'))), ACK, 'whom it is for is granted it')
    t.equal(verdict(negotiation('offered', false).push(STRUCTURED_REPLY)), ACK)
    const open = negotiation('offered', false)
    open.push(STRUCTURED_REPLY)
    t.equal(verdict(open.push(ask('missing'))), UNKNOWN, 'where nothing is hidden')
    t.end()
  })
}

void t.test('EXPORT_NAME of an export that is for others ends the connection', (t) => {
  for (const made of [negotiation('none'), negotiation('offered'), secured(VM2)]) {
    const { outcome, replies } = made.push(exportName('private'))
    t.match(outcome, { kind: 'close', fault: true })
    t.strictSame(replies, [])
  }
  t.match(secured(VM1).push(exportName('private')).outcome, { kind: 'transmit' })
  t.end()
})

void t.test('LIST shows to each client what it may use', (t) => {
  t.strictSame(names(negotiation('none').push(option(3))), ['public'])
  t.strictSame(names(negotiation('offered').push(option(3))), ['public'])
  t.strictSame(names(secured(VM2).push(option(3))), ['public'])
  t.strictSame(names(secured(VM1).push(option(3))), ['public', 'private'])
  t.end()
})
