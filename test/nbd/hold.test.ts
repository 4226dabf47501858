import t from 'tap'

import { KiB, MiB } from '../../core/units.ts'
import type { Hold } from '../../nbd/export.ts'
import {
  NBD_CMD_DISC,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_ESHUTDOWN,
} from '../../nbd/protocol.ts'
import { request, stage, until } from './harness.ts'

/** A pause that the test begins and ends. */
class Pause implements Hold {
  held = true
  readonly waiting = new Set<() => void>()

  whenLetGo(told: () => void): void {
    this.waiting.add(told)
  }

  forget(told: () => void): void {
    this.waiting.delete(told)
  }

  end(): void {
    this.held = false
    const waiting = [...this.waiting]
    this.waiting.clear()
    for (const told of waiting) told()
  }
}

const payload = Buffer.alloc(64 * KiB, 7)

void t.test(
  'what a client sends during a pause waits in its socket, and is answered after it',
  async (t) => {
    const hold = new Pause()
    const { rawAttached, device, pool, server } = await stage(t, { hold })
    const client = await rawAttached()
    for (let cookie = 0; cookie < 40; cookie += 1)
      client.send(request(NBD_CMD_WRITE, cookie, cookie * 64 * KiB, 64 * KiB), payload)
    client.send(request(NBD_CMD_FLUSH, 40, 0, 0), request(NBD_CMD_READ, 41, 39 * 64 * KiB, 4))
    await until(() => hold.waiting.size === 1)
    t.strictSame([device.calls, pool.bytesInUse], [[], 0], 'no memory is taken for it')
    t.match(server.connections, [{ executing: 0, requests: 0 }])
    hold.end()
    for (let cookie = 0; cookie < 41; cookie += 1)
      t.match(await client.reply(), { error: 0, cookie })
    t.match(await client.reply(4), { error: 0, cookie: 41, data: Buffer.from([7, 7, 7, 7]) })
  },
)

void t.test('clients come and go during a pause, and leave nothing behind', async (t) => {
  const hold = new Pause()
  const { rawAttached, attach, server, device } = await stage(t, { hold })
  const asking = await rawAttached()
  asking.send(request(NBD_CMD_READ, 1, 0, 512))
  await until(() => hold.waiting.size === 1)
  const polite = await attach()
  await polite.disconnect()
  const silent = await rawAttached()
  silent.send(request(NBD_CMD_DISC, 1, 0, 0))
  await silent.closed
  t.strictSame(device.calls, [])
  asking.socket.destroy()
  // Its socket is not read: that it has gone shows when the pause ends.
  hold.end()
  await until(() => server.connections.length === 0)
  t.equal(hold.waiting.size, 0)
})

void t.test('a client that sends its last words during a pause is answered after it', async (t) => {
  const hold = new Pause()
  const { rawAttached, device } = await stage(t, { hold })
  const client = await rawAttached()
  client.send(request(NBD_CMD_WRITE, 1, 0, 64 * KiB), payload)
  await until(() => hold.waiting.size === 1)
  client.socket.end()
  const rest = client.rest()
  await new Promise(setImmediate)
  hold.end()
  t.equal((await rest).length, 16)
  t.strictSame(device.calls, ['write 0+65536 flags=0'])
})

void t.test('a paused client is not dropped for the memory that it holds', async (t) => {
  const hold = new Pause()
  hold.held = false
  const { rawAttached, server } = await stage(t, {
    hold,
    poolBytes: 1 * MiB,
    limits: { stallMs: 20 },
  })
  // Payloads are under way when the pause begins, and the clients have stopped to send; a third one waits for memory.
  const clients = [await rawAttached(), await rawAttached(), await rawAttached()]
  for (const client of clients)
    client.send(request(NBD_CMD_WRITE, 1, 0, 512 * KiB), Buffer.alloc(1000))
  await until(() => server.connections.filter(({ bytesHeld }) => bytesHeld > 0).length === 2)
  hold.held = true
  const started = performance.now()
  await until(() => performance.now() - started > 200)
  t.equal(server.connections.length, 3)
  hold.end()
  await Promise.race(clients.map(({ closed }) => closed))
  t.pass('without a pause it is')
})

void t.test('at the end of the server what waits is refused', async (t) => {
  const hold = new Pause()
  const { rawAttached, server, device } = await stage(t, { hold })
  const client = await rawAttached()
  client.send(request(NBD_CMD_READ, 1, 0, 512))
  await until(() => hold.waiting.size === 1)
  const closing = server.close()
  t.match(await client.reply(), { error: NBD_ESHUTDOWN, cookie: 1 })
  await closing
  t.strictSame(device.calls, [])
})
