/** The client against servers that are old, strange or broken; test/nbd/server.test.ts has it against our own. */

import { once } from 'node:events'
import net from 'node:net'
import path from 'node:path'

import fc from 'fast-check'
import t, { type Test } from 'tap'

import { NbdClient } from '../../nbd/client.ts'
import { ClientHandshake, type ClientOutcome } from '../../nbd/client-handshake.ts'
import { greeting } from '../../nbd/negotiation.ts'
import { optionReply } from '../../nbd/options.ts'
import {
  NBD_OPT_GO,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
} from '../../nbd/protocol.ts'
import { ReplyDecoder } from '../../nbd/reply-decoder.ts'
import { RawClient, temporaryFolder } from './harness.ts'

const ACK = optionReply(NBD_OPT_GO, 1)
const info = (size: number, flags: number): Buffer => {
  const data = Buffer.alloc(12)
  data.writeUInt32BE(size, 6)
  data.writeUInt16BE(flags, 10)
  return optionReply(NBD_OPT_GO, NBD_REP_INFO, data)
}

function shake(bytes: Buffer, cut: number): { outcome: ClientOutcome | undefined; sent: Buffer } {
  const handshake = new ClientHandshake({ kind: 'attach', exportName: 'disk' })
  const sent: Buffer[] = []
  let outcome: ClientOutcome | undefined
  for (let at = 0; at < bytes.length && outcome === undefined;) {
    const step = handshake.push(bytes.subarray(at, at + cut))
    sent.push(...step.sends)
    outcome = step.outcome
    at += step.consumed
  }
  return { outcome, sent: Buffer.concat(sent) }
}

void t.test('a server without GO is asked by name, however its bytes are cut', (t) => {
  const answer = Buffer.alloc(10)
  answer.writeUInt32BE(4096, 4)
  answer.writeUInt16BE(5, 8)
  const unsupported = optionReply(NBD_OPT_GO, NBD_REP_ERR_UNSUP, 'no')
  const bytes = Buffer.concat([greeting(), unsupported, answer])
  for (const cut of [1, 2, 5, 18, 1000]) {
    const { outcome, sent } = shake(bytes, cut)
    t.ok(outcome?.kind === 'attached' && outcome.info.size === 4096 && outcome.info.flags === 5)
    t.equal(sent.subarray(-4).toString(), 'disk')
  }
  t.end()
})

void t.test('a server that demands TLS is told from one that has no such export', (t) => {
  const demanded = optionReply(NBD_OPT_GO, NBD_REP_ERR_TLS_REQD, 'start TLS first')
  const { outcome } = shake(Buffer.concat([greeting(), demanded]), 1000)
  t.match(outcome, {
    kind: 'failed',
    fault: { code: 'NOT_PERMITTED', message: /demands TLS: start TLS first/ },
  })
  t.end()
})

void t.test(
  'a server that is not fixed newstyle is asked by name, and its zeroes are read',
  (t) => {
    const old = greeting()
    old.writeUInt16BE(0, 16)
    const answer = Buffer.alloc(134)
    answer.writeUInt32BE(512, 4)
    t.equal(shake(Buffer.concat([old, answer.subarray(0, 133)]), 50).outcome, undefined)
    t.equal(shake(Buffer.concat([old, answer]), 50).outcome?.kind, 'attached')
    t.end()
  },
)

const huge = optionReply(NBD_OPT_GO, NBD_REP_INFO)
huge.writeUInt32BE(2 ** 32 - 1, 16)
const broken: [string, Buffer[], string][] = [
  ['not NBD at all', [Buffer.from('HTTP/1.1 400 Bad Request')], 'PROTOCOL'],
  ['oldstyle', [Buffer.from('NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0')], 'NOT_SUPPORTED'],
  ['a reply without its magic', [greeting(), Buffer.alloc(20)], 'PROTOCOL'],
  ['a reply to another option', [greeting(), optionReply(3, 1)], 'PROTOCOL'],
  ['an endless reply', [greeting(), huge], 'PROTOCOL'],
  ['an unknown reply', [greeting(), optionReply(NBD_OPT_GO, 9)], 'PROTOCOL'],
  ['no size', [greeting(), ACK], 'PROTOCOL'],
  ['short information', [greeting(), optionReply(NBD_OPT_GO, 3, Buffer.alloc(1))], 'PROTOCOL'],
  ['no such export', [greeting(), optionReply(NBD_OPT_GO, 2 ** 31 + 6)], 'NOT_FOUND'],
  ['policy', [greeting(), optionReply(NBD_OPT_GO, 2 ** 31 + 2, 'no')], 'NOT_PERMITTED'],
  ['shutdown', [greeting(), optionReply(NBD_OPT_GO, 2 ** 31 + 7)], 'SHUTDOWN'],
  ['TLS required', [greeting(), optionReply(NBD_OPT_GO, 2 ** 31 + 5)], 'NOT_PERMITTED'],
]
for (const [what, parts, code] of broken) {
  void t.test(`the handshake fails with ${code}: ${what}`, (t) => {
    const { outcome } = shake(Buffer.concat(parts), 7)
    t.ok(outcome?.kind === 'failed')
    t.equal(outcome?.kind === 'failed' && outcome.fault.code, code)
    t.end()
  })
}

/** What a client without structured replies does with them. */
const NO_CHUNKS = {
  beginChunk: () => false,
  chunkData: () => undefined,
  chunkContent: () => undefined,
  completeChunk: () => undefined,
}

void t.test('random bytes never crash the handshake nor the decoder of replies', (t) => {
  const piece = fc.oneof(
    fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
    fc.constantFrom(ACK, info(512, 1), huge),
  )
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 8 }),
      fc.integer({ min: 1, max: 50 }),
      (pieces, cut) => {
        const bytes = Buffer.concat(pieces)
        const whole = shake(Buffer.concat([greeting(), bytes]), 10_000)
        const cutUp = shake(Buffer.concat([greeting(), bytes]), cut)
        t.equal(cutUp.outcome?.kind, whole.outcome?.kind)
        t.ok(cutUp.sent.equals(whole.sent))
        let completed = 0
        const decoder = new ReplyDecoder({
          ...NO_CHUNKS,
          begin: () => undefined,
          complete: () => (completed += 1),
        })
        decoder.push(bytes, bytes.length)
        t.ok(bytes.length < 16 || decoder.violation !== undefined)
        t.equal(completed, 0)
      },
    ),
    { numRuns: 200 },
  )
  t.end()
})

void t.test('replies come out the same wherever the stream is cut', (t) => {
  const reply = (error: number, cookie: number): Buffer => {
    const bytes = Buffer.alloc(16)
    bytes.writeUInt32BE(0x67446698, 0)
    bytes.writeUInt32BE(error, 4)
    bytes.writeUInt32BE(cookie, 12)
    return bytes
  }
  const stream = Buffer.concat([reply(0, 5), Buffer.from('hello'), reply(5, 9), reply(0, 0)])
  for (let cut = 0; cut <= stream.length; cut += 1) {
    const lines: string[] = []
    let target = Buffer.alloc(0)
    const decoder = new ReplyDecoder({
      ...NO_CHUNKS,
      begin: (error, _high, low) => {
        lines.push(`${error} #${low}`)
        target = Buffer.alloc(error === 0 ? low : 0)
        return target
      },
      complete: () => lines.push(target.toString()),
    })
    for (const part of [stream.subarray(0, cut), stream.subarray(cut)])
      decoder.push(part, part.length)
    t.strictSame(lines, ['0 #5', 'hello', '5 #9', '', '0 #0', ''], `cut at ${cut}`)
  }
  t.end()
})

/** A server of a test's own making; `serve` gets each connection. */
async function scripted(t: Test, serve: (client: RawClient) => Promise<void>): Promise<string> {
  const at = path.join(await temporaryFolder(t), 's')
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined)
    void serve(new RawClient(socket))
  })
  server.listen(at)
  await once(server, 'listening')
  t.teardown(() => server.close())
  return at
}

const attachReplies = [greeting(), info(4096, 1), ACK]

void t.test('a reply to nothing asked ends the connection with a fault', async (t) => {
  const at = await scripted(t, async (peer) => {
    peer.send(...attachReplies)
    await peer.take(4 + 16 + 4 + 4 + 2 + 4 + 28)
    const reply = Buffer.alloc(16)
    reply.writeUInt32BE(0x67446698, 0)
    reply.writeUInt32BE(4711, 12)
    peer.send(reply)
    await peer.closed
  })
  const client = await NbdClient.connect({
    address: { kind: 'unix', path: at },
    exportName: 'disk',
  })
  const lost = { code: 'LINK_LOST', cause: { code: 'PROTOCOL' } }
  await t.rejects(client.read(Buffer.alloc(4), 0), lost)
  await client.closed
})

void t.test('a server that is silent makes connect fail in time', async (t) => {
  const at = await scripted(t, (peer) => peer.closed.then(() => undefined))
  const address = { kind: 'unix', path: at } as const
  await t.rejects(NbdClient.connect({ address, exportName: 'disk', timeoutMs: 20 }), {
    code: 'TIMEOUT',
  })
})

void t.test('a server that hangs up during the handshake makes connect fail', async (t) => {
  const at = await scripted(t, (peer) => {
    peer.send(greeting())
    peer.socket.end()
    return Promise.resolve()
  })
  const address = { kind: 'unix', path: at } as const
  await t.rejects(NbdClient.connect({ address, exportName: 'disk' }), { code: 'LINK_LOST' })
})
