/** What a client does wrong harms nobody else, and costs no memory for long. */

import { once } from 'node:events'

import fc from 'fast-check'
import t from 'tap'

import { KiB, MiB } from '../../core/units.ts'
import type { NbdClient } from '../../nbd/client.ts'
import { goPayload, optionRequest } from '../../nbd/client-handshake.ts'
import { NBD_CMD_DISC, NBD_CMD_READ, NBD_CMD_WRITE, NBD_OPT_GO } from '../../nbd/protocol.ts'
import type { TransportMode } from '../../net/transport.ts'
import { CLIENT_FLAGS, request, stage, until } from './harness.ts'

const TRANSPORTS: TransportMode[] = ['in-place', 'copying']

/** Proves that an innocent client is served. */
async function works(client: NbdClient): Promise<void> {
  await client.write(Buffer.alloc(64 * KiB, 7), 2 * MiB)
  await client.read(Buffer.alloc(64 * KiB), 2 * MiB)
}

for (const transport of TRANSPORTS) {
  void t.test(`a client that drips byte by byte is served right (${transport})`, async (t) => {
    const { device, raw, attach } = await stage(t, { transport })
    const innocent = await attach()
    const dripper = await raw()
    dripper.socket.setNoDelay(true)
    const bytes = Buffer.concat([
      CLIENT_FLAGS,
      optionRequest(NBD_OPT_GO, goPayload('disk', [])),
      request(NBD_CMD_WRITE, 1, 100, 20),
      Buffer.alloc(20, 'd'),
      request(NBD_CMD_READ, 2, 100, 20),
    ])
    for (const byte of bytes) {
      dripper.send(Buffer.from([byte]))
      await new Promise(setImmediate)
      await works(innocent)
    }
    await dripper.take(18 + 86)
    t.equal((await dripper.reply()).error, 0)
    t.equal((await dripper.reply(20)).data.toString(), 'd'.repeat(20))
    t.equal(device.bytes.toString('latin1', 100, 120), 'd'.repeat(20))
    await innocent.disconnect()
  })

  // Long replies meet the window's limit in bytes, short ones that in requests.
  for (const [length, asked] of [
    [64 * KiB, 500],
    [1 * KiB, 3000],
  ] as const) {
    void t.test(
      `a client that never reads its replies of ${length} bytes is bounded by its window (${transport})`,
      async (t) => {
        const window = { requests: 32, bytes: 1 * MiB }
        const { device, rawAttached, attach, server, pool } = await stage(t, {
          transport,
          limits: { window },
        })
        const greedy = await rawAttached()
        greedy.socket.pause()
        const innocent = await attach()
        for (let cookie = 0; cookie < asked; cookie += 1)
          greedy.send(request(NBD_CMD_READ, cookie, 0, length))
        // Until the system's buffers are full the server answers; then its count stands still.
        let before = -1
        while (device.calls.length !== before) {
          before = device.calls.length
          for (let turn = 0; turn < 20; turn += 1) await works(innocent)
          before += 40
        }
        const status = server.connections.find((connection) => connection.undrainedReplies > 0)
        t.ok(status !== undefined && status.undrainedReplies <= window.requests)
        t.ok(status !== undefined && status.bytesHeld <= window.bytes)
        t.ok(pool.bytesInUse <= window.bytes, `${pool.bytesInUse} bytes held`)
        greedy.socket.resume()
        for (let cookie = 0; cookie < asked; cookie += 1) {
          const reply = await greedy.reply(length)
          if (reply.cookie !== cookie) t.fail(`reply ${reply.cookie} in place of ${cookie}`)
        }
        await innocent.disconnect()
      },
    )
  }

  void t.test(
    `a client that vanishes with requests in flight leaves nothing behind (${transport})`,
    async (t) => {
      const { device, rawAttached, pool, attach } = await stage(t, { transport })
      device.mode = 'held'
      const raw = await rawAttached()
      for (let cookie = 0; cookie < 10; cookie += 1) {
        raw.send(request(NBD_CMD_READ, cookie, 0, 100 * KiB))
        raw.send(request(NBD_CMD_WRITE, cookie, cookie * 4, 4), Buffer.from('left'))
      }
      // And a payload of which the second half never comes.
      raw.send(request(NBD_CMD_WRITE, 99, 1 * MiB, 200 * KiB), Buffer.alloc(100 * KiB, 1))
      await device.whenHeld(20)
      raw.socket.destroy()
      await raw.closed
      device.mode = 'inline'
      const innocent = await attach()
      await works(innocent)
      t.ok(pool.bytesInUse > 0, 'the device still has the memory')
      device.mode = 'held'
      device.release()
      await innocent.disconnect()
      t.equal(device.bytes.toString('latin1', 0, 8), 'leftleft', 'writes that arrived have landed')
      t.equal(device.bytes[1 * MiB], 0, 'half a write has not')
    },
  )
}

void t.test(
  'clients that stall in the middle of payloads leave memory for others, then are dropped',
  async (t) => {
    const { rawAttached, attach } = await stage(t, {
      poolBytes: 1 * MiB,
      limits: { stallMs: 40 },
    })
    const innocent = await attach()
    const stallers = []
    for (let index = 0; index < 4; index += 1) {
      const staller = await rawAttached()
      staller.send(request(NBD_CMD_WRITE, 1, 0, 256 * KiB), Buffer.alloc(1000))
      stallers.push(staller)
    }
    await Promise.all([works(innocent), ...stallers.map((staller) => staller.closed)])
    await works(innocent)
    await innocent.disconnect()
  },
)

void t.test('a handshake that does not end is ended', async (t) => {
  const { raw, server } = await stage(t, { limits: { handshakeMs: 30 } })
  const idle = await raw()
  const half = await raw()
  half.send(CLIENT_FLAGS, Buffer.from('IHAVE'))
  await Promise.all([idle.closed, half.closed])
  await until(() => server.connections.length === 0)
  t.pass('the server forgot them')
})

void t.test(
  'connections beyond the cap are closed at once, and a freed place is given again',
  async (t) => {
    const { raw, attach } = await stage(t, { limits: { connections: 2 } })
    const first = await attach()
    const second = await raw()
    await second.take(18)
    const third = await raw()
    t.equal((await third.rest()).length, 0)
    second.socket.destroy()
    await second.closed
    // The server hears of the closed socket in a later turn.
    for (;;) {
      const another = await raw()
      const greeted = await Promise.race([another.take(18).catch(() => undefined), another.closed])
      if (Buffer.isBuffer(greeted)) break
    }
    await works(first)
    await first.disconnect()
  },
)

void t.test('ten thousand connections opened and dropped leave a working server', async (t) => {
  const { raw, attach, server } = await stage(t)
  for (let round = 0; round < 100; round += 1) {
    const batch = await Promise.all(Array.from({ length: 100 }, () => raw()))
    for (const [index, client] of batch.entries()) {
      if (index % 3 === 0) client.send(CLIENT_FLAGS)
      if (index % 3 === 1) client.socket.end()
      else client.socket.destroy()
    }
    await Promise.all(batch.map((client) => client.closed))
  }
  const innocent = await attach()
  await works(innocent)
  await innocent.disconnect()
  await Promise.all([innocent.closed])
  t.ok(server.connections.length < 1000)
})

void t.test(
  'a client dropped for garbage with requests in flight leaves nothing behind',
  async (t) => {
    const { rawAttached, device, pool, server } = await stage(t)
    device.mode = 'held'
    const raw = await rawAttached()
    raw.send(request(NBD_CMD_READ, 1, 0, 100 * KiB), request(NBD_CMD_READ, 2, 0, 4 * KiB))
    raw.send(request(NBD_CMD_WRITE, 3, 0, 4), Buffer.from('left'), Buffer.alloc(28, 'garbage'))
    await Promise.all([device.whenHeld(3), raw.closed])
    t.equal(server.connections[0]?.executing, 3)
    t.ok(pool.bytesInUse > 0, 'the device still has the memory')
    device.release()
    await until(() => server.connections.length === 0)
    t.equal(pool.bytesInUse, 0)
    t.equal(device.bytes.toString('latin1', 0, 4), 'left')
  },
)

void t.test('garbage after the handshake drops the client and no other', async (t) => {
  const { rawAttached, attach, device } = await stage(t)
  const innocent = await attach()
  const raw = await rawAttached()
  raw.send(Buffer.alloc(100, 'garbage'))
  await raw.closed
  t.strictSame(device.calls, [])
  await works(innocent)
  await innocent.disconnect()
})

void t.test(
  'random bytes in either phase never crash, hang or reach the device out of contract',
  async (t) => {
    const { raw, rawAttached, attach } = await stage(t, { limits: { handshakeMs: 200 } })
    const option = fc
      .tuple(fc.nat(12), fc.uint8Array({ maxLength: 40 }))
      .map(([type, payload]) => optionRequest(type, Buffer.from(payload)))
    const command = fc
      .tuple(fc.nat(9), fc.nat(255), fc.nat(5 * MiB), fc.nat(200), fc.nat(40))
      .map(([type, flags, at, length, extra]) =>
        Buffer.concat([request(type, 1, at, length, flags), Buffer.alloc(extra)]),
      )
    const noise = fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from(bytes))
    await fc.assert(
      fc.asyncProperty(
        fc.boolean(),
        fc.array(fc.oneof(option, command, noise), { maxLength: 12 }),
        async (attached, pieces) => {
          const client = attached ? await rawAttached() : await raw()
          if (!attached) client.send(CLIENT_FLAGS)
          client.send(...pieces)
          client.send(request(NBD_CMD_DISC, 1, 0, 0))
          client.socket.end()
          await client.closed
        },
      ),
      { numRuns: 200 },
    )
    const innocent = await attach()
    await works(innocent)
    await innocent.disconnect()
  },
)

void t.test('a client that asks for lists without reading them is not read either', async (t) => {
  const { raw, attach } = await stage(t)
  const lister = await raw()
  lister.socket.pause()
  lister.send(CLIENT_FLAGS)
  for (let index = 0; index < 100; index += 1) lister.send(optionRequest(3, Buffer.alloc(0)))
  const innocent = await attach()
  await works(innocent)
  lister.socket.resume()
  await lister.take(18 + 100 * (20 + 4 + 4 + 8 + 20))
  lister.socket.end()
  await once(lister.socket, 'close')
  await innocent.disconnect()
  t.pass('all answers came')
})
