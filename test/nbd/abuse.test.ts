/** Crowds of bad clients: memory stays bounded, and others are served. */

import t from 'tap'

import { KiB, MiB } from '../../core/units.ts'
import type { NbdClient } from '../../nbd/client.ts'
import { goPayload, optionRequest } from '../../nbd/client-handshake.ts'
import { NBD_CMD_READ, NBD_CMD_WRITE, NBD_OPT_GO } from '../../nbd/protocol.ts'
import { CLIENT_FLAGS, request, stage, until } from './harness.ts'
import { BLOCK_STATUS, READ, ask, chunkOption, reply, setContexts } from './wire.ts'

async function served(client: NbdClient): Promise<void> {
  await client.write(Buffer.alloc(64 * KiB, 7), 2 * MiB)
  await client.read(Buffer.alloc(64 * KiB), 2 * MiB)
}

void t.test('two thousand clients that stay half-way cost no memory of the pool', async (t) => {
  const { raw, attach, pool, server } = await stage(t, { limits: { connections: 2001 } })
  const innocent = await attach()
  await served(innocent)
  const allocated = pool.bytesAllocated
  const stages = [
    [],
    [CLIENT_FLAGS],
    [CLIENT_FLAGS, Buffer.from('IHAVE')],
    [CLIENT_FLAGS, optionRequest(NBD_OPT_GO, goPayload('disk', [])).subarray(0, 20)],
    [CLIENT_FLAGS, optionRequest(NBD_OPT_GO, goPayload('disk', []))],
    [CLIENT_FLAGS, optionRequest(NBD_OPT_GO, goPayload('disk', [])), Buffer.alloc(27)],
  ]
  for (let index = 0; index < 2000; index += 1) {
    const client = await raw()
    client.send(...(stages[index % stages.length] ?? []))
    if (index % 7 === 0) client.socket.end()
    if (index % 100 === 0) await served(innocent)
  }
  await served(innocent)
  t.equal(pool.bytesAllocated, allocated)
  t.ok(server.connections.length > 1000, 'they are still there')
  await innocent.disconnect()
})

void t.test('a flood of the largest requests stays within the pool', async (t) => {
  const limits = { connections: 100, stallMs: 60_000 }
  const { rawAttached, attach, pool, device } = await stage(t, { poolBytes: 96 * MiB, limits })
  device.mode = 'async'
  const innocent = await attach()
  const readers = await Promise.all(Array.from({ length: 10 }, () => rawAttached()))
  const writers = await Promise.all(Array.from({ length: 10 }, () => rawAttached()))
  for (const client of readers) {
    client.socket.pause()
    for (let cookie = 0; cookie < 20; cookie += 1)
      client.send(request(NBD_CMD_READ, cookie, 0, 4 * MiB))
  }
  for (const client of writers)
    client.send(request(NBD_CMD_WRITE, 1, 0, 32 * MiB), Buffer.alloc(1 * MiB))
  for (let round = 0; round < 50; round += 1) {
    await served(innocent)
    if (pool.bytesInUse > pool.limit) t.fail(`${pool.bytesInUse} bytes are in use`)
  }
  t.ok(pool.bytesInUse > 0 && pool.bytesAllocated <= pool.limit + 16 * MiB)
  for (const client of [...readers, ...writers]) client.socket.destroy()
  await innocent.disconnect()
})

void t.test('statuses and sparse reads that nobody fetches stay within their window', async (t) => {
  const window = { requests: 32, bytes: 1 * MiB }
  const { rawAttached, attach, pool, device, server } = await stage(t, { limits: { window } })
  device.can = { ...device.can, status: true }
  device.extents = Array.from({ length: 1024 }, (_, index) => ({
    at: index * 4 * KiB,
    length: 4 * KiB,
    kind: index % 2 === 0 ? ('data' as const) : ('hole' as const),
  }))
  const greedy = await rawAttached(chunkOption('extended'), setContexts('disk', 'base:allocation'))
  greedy.socket.pause()
  const asked = 3000
  for (let cookie = 0; cookie < asked; cookie += 1) {
    const type = cookie % 2 === 0 ? BLOCK_STATUS : READ
    greedy.send(ask('extended', type, cookie, 0, type === READ ? 100 * KiB : 4 * MiB))
  }
  const innocent = await attach()
  let before = -1
  while (device.calls.length !== before) {
    before = device.calls.length
    for (let turn = 0; turn < 20; turn += 1) await served(innocent)
    before += 40
  }
  const status = server.connections.find(({ undrainedReplies }) => undrainedReplies > 0)
  t.ok(status !== undefined && status.undrainedReplies <= window.requests)
  t.ok(pool.bytesInUse <= window.bytes + 256 * KiB, `${pool.bytesInUse} bytes in use`)
  greedy.socket.resume()
  const seen = new Set<bigint>()
  while (seen.size < asked) {
    const [chunk] = await reply(greedy, 'extended')
    if (chunk !== undefined) seen.add(chunk.cookie)
  }
  t.equal(seen.size, asked, 'everything is answered in the end')
  await innocent.disconnect()
})

void t.test('clients that close one half in the middle of anything are let go', async (t) => {
  const { raw, rawAttached, attach, server } = await stage(t)
  const innocent = await attach()
  for (let index = 0; index < 200; index += 1) {
    const client = index % 2 === 0 ? await raw() : await rawAttached()
    if (index % 2 === 0) client.send(CLIENT_FLAGS.subarray(0, index % 5))
    else client.send(request(NBD_CMD_WRITE, 1, 0, 1000), Buffer.alloc(index))
    client.socket.end()
    await client.closed
  }
  await served(innocent)
  await until(() => server.connections.length === 1)
  await innocent.disconnect()
})
