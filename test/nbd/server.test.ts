import t, { type Test } from 'tap'

import { FAST_ZERO, FUA, NO_HOLE } from '../../core/block-device.ts'
import { BufferPool } from '../../core/buffer-pool.ts'
import { Fault, type FaultCode } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { KiB, MiB } from '../../core/units.ts'
import type { ListenAddress } from '../../nbd/address.ts'
import { NbdClient, listExports } from '../../nbd/client.ts'
import {
  NBD_CMD_DISC,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
} from '../../nbd/protocol.ts'
import { NbdServer } from '../../nbd/server.ts'
import type { TransportMode } from '../../net/transport.ts'
import { request, stage, tableOf } from './harness.ts'
import { ALL_CAPABILITIES, MemoryDevice, type AnswerMode } from './memory-device.ts'

const TRANSPORTS: TransportMode[] = ['in-place', 'copying']
const MODES: AnswerMode[] = ['inline', 'async']

function pattern(length: number, seed: number): Buffer {
  return Buffer.from(
    Uint8Array.from({ length }, (_, at) => (at * 31 + seed * 7 + (at >> 8)) & 0xff),
  )
}

async function failsWith(t: Test, code: FaultCode, promise: Promise<unknown>): Promise<void> {
  await t.rejects(promise, { name: 'Fault', code })
}

for (const transport of TRANSPORTS) {
  for (const mode of MODES) {
    void t.test(`what is written reads back (${transport}, device ${mode})`, async (t) => {
      const { device, attach } = await stage(t, { transport })
      device.mode = mode
      const client = await attach()
      // Lengths around every threshold of the data path, all in flight together.
      const lengths = [1, 511, 512, 4 * KiB, 16 * KiB - 1, 16 * KiB, 32 * KiB, 32 * KiB + 1]
      lengths.push(255 * KiB, 256 * KiB, 257 * KiB, 1 * MiB)
      let at = 3
      const pieces = lengths.map((length, seed) => {
        const piece = { at, data: pattern(length, seed), back: Buffer.alloc(length) }
        at += length + 1
        return piece
      })
      await Promise.all(pieces.map((piece) => client.write(piece.data, piece.at)))
      await Promise.all(pieces.map((piece) => client.read(piece.back, piece.at)))
      for (const piece of pieces) {
        t.ok(piece.back.equals(piece.data), `${piece.data.length} bytes`)
        const end = piece.at + piece.data.length
        t.ok(device.bytes.subarray(piece.at, end).equals(piece.data))
        t.equal(device.bytes[end], 0, 'nothing behind the end is touched')
      }
      await client.disconnect()
    })
  }

  void t.test(`a deep pipeline is answered in full (${transport})`, async (t) => {
    const { device, attach, server } = await stage(t, { transport })
    device.mode = 'async'
    const client = await attach()
    const blocks = 1000
    const writes = Array.from({ length: blocks }, (_, index) =>
      client.write(Buffer.alloc(512, index), index * 512),
    )
    t.equal(client.outstanding, blocks)
    await Promise.all(writes)
    const back = Array.from({ length: blocks }, () => Buffer.alloc(512))
    await Promise.all(back.map((buffer, index) => client.read(buffer, index * 512)))
    t.ok(back.every((buffer, index) => buffer.every((byte) => byte === (index & 0xff))))
    const [status] = server.connections
    t.equal(status?.requests, 2 * blocks)
    t.equal(status?.bytesWritten, blocks * 512)
    t.equal(status?.bytesRead, blocks * 512)
    await client.disconnect()
  })

  void t.test(
    `a pool smaller than the demand delays requests, and fails none (${transport})`,
    async (t) => {
      const { device, attach } = await stage(t, { transport, poolBytes: 1 * MiB })
      device.mode = 'async'
      const clients = await Promise.all([attach(), attach(), attach()])
      await Promise.all(
        clients.flatMap((client, index) =>
          Array.from({ length: 20 }, (_, at) => [
            client.write(Buffer.alloc(300 * KiB, index), index * MiB),
            client.read(Buffer.alloc(1 * MiB - 16 * at), 0),
            client.write(Buffer.alloc(4 * KiB, index), index * MiB),
          ]).flat(),
        ),
      )
      for (const client of clients) await client.disconnect()
    },
  )
}

void t.test('flags and the other commands reach the device', async (t) => {
  const { device, attach } = await stage(t)
  const client = await attach()
  await client.write(Buffer.from('x'), 5, FUA)
  await client.zero(0, 4096, NO_HOLE | FUA)
  await client.zero(0, 4096, FAST_ZERO)
  await client.trim(512, 1024, FUA)
  await client.flush()
  t.strictSame(device.calls, [
    `write 5+1 flags=${FUA}`,
    `zero 0+4096 flags=${NO_HOLE | FUA}`,
    `zero 0+4096 flags=${FAST_ZERO}`,
    `trim 512+1024 flags=${FUA}`,
    'flush 0+0 flags=0',
  ])
  t.equal(client.info.size, 4 * MiB)
  t.strictSame(client.info.block, { min: 1, preferred: 4096, max: 32 * MiB })
  await client.disconnect()
})

void t.test('requests of length 0 succeed without troubling the device', async (t) => {
  const { device, attach } = await stage(t)
  const client = await attach()
  await client.read(Buffer.alloc(0), 0)
  await client.write(Buffer.alloc(0), 0)
  await client.trim(0, 0)
  await client.zero(0, 0)
  t.strictSame(device.calls, [])
  await client.disconnect()
})

const FAULTS: [FaultCode, number][] = [
  ['NOT_PERMITTED', 1],
  ['IO', 5],
  ['NO_MEMORY', 12],
  ['INVALID', 22],
  ['NO_SPACE', 28],
  ['NOT_SUPPORTED', 95],
  ['SHUTDOWN', 108],
  ['LINK_LOST', 5],
]
for (const mode of MODES) {
  void t.test(`a failing device fails the request with its error (${mode})`, async (t) => {
    const { device, rawAttached, attach } = await stage(t)
    device.mode = mode
    const raw = await rawAttached()
    for (const [code, errno] of FAULTS) {
      device.failure = new Fault(code, 'told to fail')
      raw.send(request(NBD_CMD_READ, 7, 0, 100))
      t.strictSame(await raw.reply(), { error: errno, cookie: 7, data: Buffer.alloc(0) })
      raw.send(request(NBD_CMD_WRITE, 8, 0, 100), Buffer.alloc(100))
      t.strictSame(await raw.reply(), { error: errno, cookie: 8, data: Buffer.alloc(0) })
    }
    device.failure = new Error('not a fault')
    const client = await attach()
    await failsWith(t, 'IO', client.flush())
    device.failure = undefined
    await client.flush()
    raw.send(request(NBD_CMD_READ, 9, 0, 100))
    t.equal((await raw.reply(100)).error, 0, 'the stream is in step after errors')
    await client.disconnect()
  })
}

void t.test('requests beyond the end fail as the specification says', async (t) => {
  const { attach } = await stage(t)
  const client = await attach()
  await failsWith(t, 'NO_SPACE', client.write(Buffer.alloc(2), 4 * MiB - 1))
  await failsWith(t, 'INVALID', client.read(Buffer.alloc(2), 4 * MiB - 1))
  await failsWith(t, 'NO_SPACE', client.write(Buffer.alloc(2), Number.MAX_SAFE_INTEGER))
  await client.disconnect()
})

void t.test('what was not offered is refused, its payload drained', async (t) => {
  const device = new MemoryDevice(64 * KiB)
  device.can = { ...ALL_CAPABILITIES, fua: false, fastZero: false, trim: false, flush: false }
  const { rawAttached } = await stage(t, { device })
  const raw = await rawAttached()
  const payload = request(NBD_CMD_READ, 666, 0, 10)
  const cases: [string, Buffer[]][] = [
    ['an unknown command', [request(5, 1, 0, 4096)]],
    ['BLOCK_STATUS', [request(7, 1, 0, 4096)]],
    ['TRIM', [request(NBD_CMD_TRIM, 1, 0, 4096)]],
    ['FLUSH', [request(3, 1, 0, 0)]],
    ['FUA', [request(NBD_CMD_WRITE, 1, 0, 28, 1), payload]],
    ['an unknown flag of WRITE', [request(NBD_CMD_WRITE, 1, 0, 28, 0x8000), payload]],
    ['FAST_ZERO', [request(NBD_CMD_WRITE_ZEROES, 1, 0, 28, 16)]],
    ['NO_HOLE of TRIM', [request(NBD_CMD_TRIM, 1, 0, 28, 2)]],
    ['NO_HOLE of READ', [request(NBD_CMD_READ, 1, 0, 28, 2)]],
    ['a READ over the maximum', [request(NBD_CMD_READ, 1, 0, 32 * MiB + 1)]],
  ]
  for (const [what, bytes] of cases) {
    raw.send(...bytes)
    const { error, cookie } = await raw.reply()
    t.strictSame({ error, cookie }, { error: 22, cookie: 1 }, what)
  }
  t.strictSame(device.calls, [])
  raw.send(request(NBD_CMD_READ, 2, 0, 10))
  t.strictSame(await raw.reply(10), { error: 0, cookie: 2, data: Buffer.alloc(10) })
})

void t.test(
  'a WRITE over the maximum is drained and refused; one far over it drops the client',
  async (t) => {
    const { rawAttached, device, pool } = await stage(t)
    const raw = await rawAttached()
    raw.send(request(NBD_CMD_WRITE, 1, 0, 32 * MiB + 1), Buffer.alloc(32 * MiB + 1))
    t.equal((await raw.reply()).error, 22)
    t.equal(pool.bytesAllocated, 0, 'no memory was spent on it')
    raw.send(request(NBD_CMD_WRITE, 2, 0, 2 ** 32 - 1))
    await raw.closed
    t.strictSame(device.calls, [])
  },
)

void t.test('a request larger than the whole pool fails with ENOMEM', async (t) => {
  const { attach } = await stage(t, { poolBytes: 64 * KiB })
  const client = await attach()
  await failsWith(t, 'NO_MEMORY', client.write(Buffer.alloc(65 * KiB), 0))
  await failsWith(t, 'NO_MEMORY', client.read(Buffer.alloc(65 * KiB), 0))
  await client.read(Buffer.alloc(60 * KiB), 0)
  await client.disconnect()
})

void t.test('a read-only export refuses every change', async (t) => {
  const { device, attach } = await stage(t, { device: new MemoryDevice(512, { readOnly: true }) })
  const client = await attach()
  await failsWith(t, 'NOT_PERMITTED', client.write(Buffer.alloc(10), 0))
  await failsWith(t, 'NOT_PERMITTED', client.trim(0, 10))
  await failsWith(t, 'NOT_PERMITTED', client.zero(0, 10))
  await client.read(Buffer.alloc(10), 0)
  t.strictSame(device.calls, ['read 0+10 flags=0'])
  await client.disconnect()
})

void t.test(
  'DISC waits for earlier writes, and their replies, before the connection closes',
  async (t) => {
    const { device, rawAttached, server } = await stage(t)
    device.mode = 'held'
    const raw = await rawAttached()
    raw.send(request(NBD_CMD_WRITE, 1, 0, 4), Buffer.from('abcd'), request(NBD_CMD_DISC, 2, 0, 0))
    await device.whenHeld(1)
    t.equal(server.connections.length, 1)
    device.release()
    t.equal((await raw.reply()).error, 0)
    t.equal((await raw.rest()).length, 0)
    t.equal(device.bytes.toString('latin1', 0, 4), 'abcd')
  },
)

void t.test('a client that closes its half gets the replies still due', async (t) => {
  const { device, rawAttached } = await stage(t)
  device.mode = 'held'
  const raw = await rawAttached()
  raw.send(request(NBD_CMD_READ, 1, 0, 8))
  raw.socket.end()
  await device.whenHeld(1)
  device.release()
  t.equal((await raw.reply(8)).error, 0)
  await raw.closed
})

void t.test('close() finishes what is in flight, refuses what is new, and closes', async (t) => {
  const { device, raw: connect, rawAttached, server } = await stage(t)
  device.mode = 'held'
  const raw = await rawAttached()
  const handshaking = await connect()
  await handshaking.take(18)
  raw.send(request(NBD_CMD_WRITE, 1, 0, 4), Buffer.from('abcd'))
  await device.whenHeld(1)
  const closed = server.close()
  raw.send(request(NBD_CMD_READ, 2, 0, 4))
  t.strictSame(await raw.reply(), { error: 108, cookie: 2, data: Buffer.alloc(0) })
  device.release()
  t.strictSame(await raw.reply(), { error: 0, cookie: 1, data: Buffer.alloc(0) })
  await Promise.all([closed, raw.closed, handshaking.closed])
  t.equal(device.bytes.toString('latin1', 0, 4), 'abcd')
})

void t.test('close() does not wait for a hung device longer than told', async (t) => {
  const { device, rawAttached, server, pool } = await stage(t, { limits: { closeMs: 50 } })
  device.mode = 'held'
  const raw = await rawAttached()
  raw.send(request(NBD_CMD_READ, 1, 0, 4))
  await device.whenHeld(1)
  await server.close()
  await raw.closed
  t.equal(server.connections.length, 1, 'the request is still with the device')
  t.ok(pool.bytesInUse > 0, 'which may still use its memory')
  device.release()
  await new Promise(setImmediate)
  t.equal(pool.bytesInUse, 0)
})

void t.test('a client learns that the server is gone', async (t) => {
  const { device, attach, server } = await stage(t, { limits: { closeMs: 20 } })
  device.mode = 'held'
  const client = await attach()
  const requests = [client.read(Buffer.alloc(10), 0), client.write(Buffer.alloc(10), 0)]
  const lost = requests.map((request) => failsWith(t, 'LINK_LOST', request))
  await device.whenHeld(2)
  await server.close()
  await Promise.all(lost)
  await client.closed
  await failsWith(t, 'LINK_LOST', client.flush())
  await client.disconnect()
})

void t.test('an abandoned connection fails its requests and frees the server', async (t) => {
  const { device, attach, server } = await stage(t)
  device.mode = 'held'
  const client = await attach()
  const lost = failsWith(t, 'LINK_LOST', client.read(Buffer.alloc(10), 0))
  await device.whenHeld(1)
  client.abandon()
  await lost
  device.mode = 'inline'
  const other = await attach()
  await other.flush()
  await other.disconnect()
  t.ok(server.connections.length >= 1, 'the slot of the vanished client is held by the device')
})

void t.test('the handshake of our client fails with a fault that says why', async (t) => {
  const { address } = await stage(t)
  await t.rejects(NbdClient.connect({ address, exportName: 'nope' }), {
    code: 'NOT_FOUND',
    where: /^unix:/,
  })
  await failsWith(
    t,
    'LINK_LOST',
    NbdClient.connect({ address: { kind: 'unix', path: '/nonexistent' }, exportName: '' }),
  )
  t.strictSame(await listExports(address), [{ name: 'disk', description: 'the disk' }])
})

void t.test('several listeners serve the same exports, TCP over both families', async (t) => {
  const { server, device } = await stage(t)
  device.bytes.write('here')
  const wanted: ListenAddress[] = [
    { kind: 'tcp', host: '127.0.0.1', port: 0 },
    { kind: 'tcp', host: '::1', port: 0 },
  ]
  for (const address of wanted) {
    let bound
    try {
      bound = await server.listen(address)
    } catch (error) {
      if (address.kind === 'tcp' && address.host === '::1') {
        t.comment(`no IPv6 here: ${String(error)}`)
        continue
      }
      throw error
    }
    if (bound.kind !== 'tcp') throw new Error('TCP was asked for')
    t.ok(bound.port > 0)
    const client = await NbdClient.connect({ address: bound, exportName: 'disk' })
    const back = Buffer.alloc(4)
    await client.read(back, 0)
    t.equal(back.toString(), 'here')
    await t.rejects(server.listen(bound), { code: 'IN_USE', where: /:\d+$/ })
    await client.disconnect()
  }
})

void t.test('a closed server does not listen again', async (t) => {
  const server = new NbdServer({
    exports: tableOf(),
    pool: new BufferPool(1 * MiB),
    logger: SILENT,
  })
  await server.close()
  await failsWith(t, 'SHUTDOWN', server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }))
})
