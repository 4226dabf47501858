/** What a server does besides answering: who may connect, for how long, and how fairly they share. */

import { readFileSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import path from 'node:path'

import t from 'tap'

import { BufferPool } from '../../core/buffer-pool.ts'
import { SILENT } from '../../core/logger.ts'
import { KiB, MiB } from '../../core/units.ts'
import { Guard } from '../../drivers/guard.ts'
import { RamDevice } from '../../drivers/ram.ts'
import { NbdClient } from '../../nbd/client.ts'
import { NBD_CMD_READ, NBD_CMD_WRITE } from '../../nbd/protocol.ts'
import { NbdServer } from '../../nbd/server.ts'
import { request, stage, temporaryFolder, until } from './harness.ts'

void t.test('a unix socket has the mode it was given, from the beginning', async (t) => {
  const { server } = await stage(t)
  const at = path.join(await temporaryFolder(t), 's')
  await server.listen({ kind: 'unix', path: at, mode: 0o660 })
  t.equal((await stat(at)).mode & 0o777, 0o660)
})

void t.test('a descriptor that is no listening socket is refused', async (t) => {
  const { server } = await stage(t)
  await t.rejects(server.listen({ kind: 'inherited', fd: 9999, name: 'nbd' }), {
    code: 'INVALID',
    message: /descriptor 9999.*ListenStream/,
  })
})

void t.test('TCP clients that are gone without a word are found out by keepalive', async (t) => {
  const { server } = await stage(t)
  const bound = await server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 })
  if (bound.kind !== 'tcp') throw new Error('TCP was asked for')
  const client = await NbdClient.connect({ address: bound, exportName: 'disk' })
  const port = bound.port.toString(16).toUpperCase().padStart(4, '0')
  // proc_net_tcp.txt: local address, remote address, state (01: established), queues, timer (02: keepalive).
  const timer = (): string | undefined =>
    readFileSync('/proc/net/tcp', 'utf8')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .find(([, local, , state]) => local === `0100007F:${port}` && state === '01')?.[5]
  // While something sent is not acknowledged the timer is another one.
  await until(() => timer()?.startsWith('02:') === true)
  t.pass('the timer runs')
  await client.disconnect()
})

void t.test('an idle client is dropped, one that asks now and then is not', async (t) => {
  const { rawAttached, attach, server } = await stage(t, { limits: { idleMs: 60 } })
  const idle = await rawAttached()
  const busy = await attach()
  let asked = 0
  let gone = false
  void idle.closed.then(() => (gone = true))
  while (!gone) {
    await busy.read(Buffer.alloc(10), 0)
    asked += 1
  }
  t.ok(asked > 0)
  t.equal(server.connections.length, 1)
  await busy.disconnect()
})

void t.test('a client whose payload comes slowly is not idle', async (t) => {
  const { rawAttached, device } = await stage(t, { limits: { idleMs: 60 } })
  const slow = await rawAttached()
  slow.send(request(NBD_CMD_WRITE, 1, 0, 100_000))
  const idle = await rawAttached()
  let gone = false
  void idle.closed.then(() => (gone = true))
  let sent = 0
  while (!gone) {
    slow.send(Buffer.from([7]))
    sent += 1
    await new Promise(setImmediate)
  }
  slow.send(Buffer.alloc(100_000 - sent, 7))
  t.equal((await slow.reply()).error, 0)
  t.equal(device.bytes[99_999], 7)
})

void t.test('a client whose request is with the device is not idle', async (t) => {
  const { rawAttached, device } = await stage(t, { limits: { idleMs: 20 } })
  device.mode = 'held'
  const waiting = await rawAttached()
  waiting.send(request(NBD_CMD_READ, 1, 0, 10))
  await device.whenHeld(1)
  const idle = await rawAttached()
  await idle.closed
  device.release()
  t.equal((await waiting.reply(10)).error, 0)
})

void t.test('a client that does not take its answers is idle', async (t) => {
  const { rawAttached, server } = await stage(t, {
    limits: { idleMs: 60, window: { requests: 128, bytes: 64 * MiB } },
  })
  const deaf = await rawAttached()
  deaf.socket.pause()
  for (let cookie = 0; cookie < 50; cookie += 1)
    deaf.send(request(NBD_CMD_READ, cookie, 0, 1 * MiB))
  await until(() => server.connections.length === 0)
  deaf.socket.destroy()
  t.pass('it is gone')
})

void t.test('a new size is told to clients that come later, and served to all', async (t) => {
  const ram = new Guard(new RamDevice(1 * MiB), false)
  t.teardown(() => ram.close())
  const disk = { name: 'disk', description: '', device: ram }
  const server = new NbdServer({
    exports: { find: () => disk, list: () => [disk] },
    pool: new BufferPool(64 * MiB),
    logger: SILENT,
  })
  const address = { kind: 'unix', path: path.join(await temporaryFolder(t), 's') } as const
  await server.listen(address)
  t.teardown(() => server.close())
  const earlier = await NbdClient.connect({ address, exportName: 'disk' })
  await ram.resize(2 * MiB)
  const later = await NbdClient.connect({ address, exportName: 'disk' })
  t.strictSame([earlier.info.size, later.info.size], [1 * MiB, 2 * MiB])
  await later.write(Buffer.from('new'), 2 * MiB - 3)
  await earlier.read(Buffer.alloc(3), 2 * MiB - 3)
  await ram.resize(1 * MiB)
  await t.rejects(later.read(Buffer.alloc(3), 2 * MiB - 3), { code: 'INVALID' })
  await Promise.all([earlier.disconnect(), later.disconnect()])
})

void t.test(
  'a client that floods gets no more than its window between two others’ turns',
  async (t) => {
    const window = { requests: 16, bytes: 1 * MiB }
    const { device, rawAttached, attach } = await stage(t, { limits: { window } })
    device.mode = 'async'
    const innocent = await attach()
    const flood = await rawAttached()
    const asked = 4000
    const requests = Array.from({ length: asked }, (_, cookie) =>
      request(NBD_CMD_READ, cookie, 4 * KiB, 512),
    )
    flood.send(Buffer.concat(requests))
    await until(() => device.calls.length > 0)
    const before = device.calls.length
    await innocent.read(Buffer.alloc(10), 0)
    const between = device.calls.lastIndexOf('read 0+10 flags=0') - before
    // In flight when the innocent one asked, and what was let in while its request was on its way.
    t.ok(between < 20 * window.requests, `${between} of the flood were served first`)
    for (let cookie = 0; cookie < asked; cookie += 1) await flood.reply(512)
    await innocent.disconnect()
  },
)
