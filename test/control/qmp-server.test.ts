import { once } from 'node:events'
import { existsSync, lstatSync, readdirSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'

import fc from 'fast-check'
import t, { type Test } from 'tap'

import { EventBus } from '../../control/events.ts'
import { QmpClient, type ReceivedEvent } from '../../control/qmp-client.ts'
import { MAX_BACKLOG, MAX_REQUEST } from '../../control/qmp-connection.ts'
import { MAX_CONNECTIONS, QmpServer } from '../../control/qmp-server.ts'
import { SILENT } from '../../core/logger.ts'
import type { CheckpointResult } from '../../replication/group.ts'
import { socketFolder } from './socket-folder.ts'
import { contextOf, FakeGroup } from './fake-group.ts'

interface Setup {
  readonly path: string
  readonly folder: string
  readonly server: QmpServer
  readonly events: EventBus
}

async function serve(t: Test, ...groups: FakeGroup[]): Promise<Setup> {
  const folder = socketFolder(t)
  const path = join(folder, 'control.sock')
  const events = new EventBus()
  const server = new QmpServer({ path, context: contextOf(...groups), events, logger: SILENT })
  await server.listen()
  t.teardown(() => server.close())
  return { path, folder, server, events }
}

async function client(
  t: Test,
  path: string,
  onEvent?: (event: ReceivedEvent) => void,
): Promise<QmpClient> {
  const connected = await QmpClient.connect(path, onEvent)
  t.teardown(() => connected.close())
  return connected
}

/** A connection without manners: collects what comes. */
class Raw {
  readonly socket: Socket
  text = ''
  readonly ended: Promise<unknown>

  constructor(t: Test, path: string) {
    this.socket = connect({ path, allowHalfOpen: true })
    this.socket.on('error', () => undefined)
    this.ended = new Promise((done) => this.socket.once('close', done))
    this.socket.on('data', (chunk) => {
      this.text += chunk.toString()
    })
    t.teardown(() => this.socket.destroy())
  }

  get lines(): string[] {
    return this.text.split('\r\n').slice(0, -1)
  }

  /** Waits until so many whole lines have come. */
  async line(count: number): Promise<unknown> {
    while (this.lines.length < count) await once(this.socket, 'data')
    return JSON.parse(this.lines[count - 1]!)
  }
}

void t.test('a client commands, and other clients see what happened', async (t) => {
  const group = new FakeGroup('vm1')
  const { path, events } = await serve(t, group)
  const seen: ReceivedEvent[] = []
  const [one, two] = [await client(t, path), await client(t, path, (event) => seen.push(event))]
  group.onCheckpoint = async () => {
    const result = await group.commit()
    events.publish({ event: 'REPLICATION_CHECKPOINT', data: { group: 'vm1', ...result } })
    return result
  }
  const result = await one.execute('replication-checkpoint', { group: 'vm1' })
  t.match(result, { checkpoint: 1 })
  await two.execute('query-version')
  t.match(seen, [{ event: 'REPLICATION_CHECKPOINT', data: { checkpoint: 1, group: 'vm1' } }])
  await t.rejects(two.execute('no-such'), { code: 'REFUSED', message: /'no-such'/ })
})

void t.test('a slow command delays its own connection and no other', async (t) => {
  const group = new FakeGroup('vm1')
  const { path } = await serve(t, group)
  let commit: (result: CheckpointResult) => void = () => undefined
  const begun = new Promise<void>((resolve) => {
    group.onCheckpoint = () => {
      resolve()
      return new Promise((done) => {
        commit = done
      })
    }
  })
  const [slow, quick] = [await client(t, path), await client(t, path)]
  const order: string[] = []
  const answers = [
    slow.execute('replication-checkpoint').then(() => order.push('checkpoint')),
    slow.execute('query-version').then(() => order.push('after it')),
  ]
  await begun
  await quick.execute('replication-status')
  order.push('the other connection')
  commit(await group.commit())
  await Promise.all(answers)
  t.same(order, ['the other connection', 'checkpoint', 'after it'])
})

void t.test(
  'requests that come in one piece, in bytes, or without line feeds are answered',
  async (t) => {
    const { path } = await serve(t)
    const raw = new Raw(t, path)
    t.match(await raw.line(1), { QMP: {} })
    raw.socket.write('{"execute":"qmp_capabilities"}{"execute":"query-version","id":1}\r\n{"id":')
    t.match(await raw.line(3), { return: {}, id: 1 })
    for (const byte of '2,"execute":"query-commands"}') raw.socket.write(byte)
    t.match(await raw.line(4), { return: [], id: 2 })
    raw.socket.end('{"execute":"query-version","id":3}{"execute"')
    t.match(await raw.line(5), { return: {}, id: 3 })
    t.match(await raw.line(6), { error: { desc: /JSON parse error/ } })
    await raw.ended
    t.equal(raw.lines.length, 6)
  },
)

void t.test('garbage gets errors on its own connection while another client works', async (t) => {
  const { path } = await serve(t, new FakeGroup('vm1'))
  const good = await client(t, path)
  const raw = new Raw(t, path)
  await raw.line(1)
  const garbage: (string | Buffer)[] = [
    'nonsense\n',
    Buffer.from([0xff, 0xfe, 0x00, 0x0a]),
    `${'['.repeat(100_000)}\n`,
    `"${'x'.repeat(MAX_REQUEST + 1)}"\n`,
    `{"execute":"${'x'.repeat(MAX_REQUEST)}"}\n`,
    '{"execute":"quit"}\n',
    '[1,2]\n',
  ]
  for (const [index, piece] of garbage.entries()) {
    raw.socket.write(piece)
    t.match(await raw.line(index + 2), { error: { desc: String } })
    t.match(await good.execute('replication-status'), { groups: [{ group: 'vm1' }] })
  }
  raw.socket.write('{"execute":"qmp_capabilities"}')
  t.same(await raw.line(garbage.length + 2), { return: {} }, 'it can still come to its senses')
})

void t.test('random bytes harm nobody', async (t) => {
  const { path } = await serve(t, new FakeGroup('vm1'))
  const good = await client(t, path)
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async (bytes) => {
      const raw = new Raw(t, path)
      raw.socket.end(Buffer.from(bytes))
      await raw.ended
      const [greeting, ...replies] = raw.lines
      await good.execute('query-version')
      return greeting!.startsWith('{"QMP"') && replies.every((line) => line.startsWith('{"error"'))
    }),
    { numRuns: 40 },
  )
})

void t.test('a client that does not read is dropped, and the others go on', async (t) => {
  const { path, events } = await serve(t, new FakeGroup('vm1'))
  const deaf = connect(path)
  deaf.on('error', () => undefined)
  t.teardown(() => deaf.destroy())
  deaf.write('{"execute":"qmp_capabilities"}')
  let heard = 0
  const good = await client(t, path, () => (heard += 1))
  const error = 'x'.repeat(64 * 1024)
  // The backlog, and room for what the kernel holds of it.
  const count = Math.ceil((MAX_BACKLOG * 2) / error.length)
  for (let sent = 0; sent < count; sent += 1) {
    events.publish({ event: 'REPLICATION_ERROR', data: { group: 'vm1', error } })
    await good.execute('query-version')
  }
  t.equal(heard, count)
  let received = 0
  const fate = await new Promise<string>((done) => {
    deaf.once('close', () => {
      done('dropped')
    })
    deaf.on('data', (chunk) => {
      received += chunk.length
      if (received > count * error.length) done('served whole')
    })
  })
  t.equal(fate, 'dropped')
  t.match(await good.execute('query-version'), { qemu: {} })
})

void t.test('one client too many is told so, and a leaving client makes room', async (t) => {
  const { path } = await serve(t)
  const clients = []
  for (let n = 0; n < MAX_CONNECTIONS; n += 1) clients.push(await client(t, path))
  await t.rejects(QmpClient.connect(path), { code: 'REFUSED', message: /no more than 64/ })
  await clients[0]!.close()
  const again = await client(t, path)
  t.match(await again.execute('query-version'), { qemu: {} })
})

void t.test('closing gives the running command its reply, and ends idle clients', async (t) => {
  const group = new FakeGroup('vm1')
  const { path, server } = await serve(t, group)
  const [busy, idle] = [await client(t, path), await client(t, path)]
  let commit: (result: CheckpointResult) => void = () => undefined
  const begun = new Promise<void>((resolve) => {
    group.onCheckpoint = () => {
      resolve()
      return new Promise((done) => {
        commit = done
      })
    }
  })
  const reply = busy.execute('replication-checkpoint')
  await begun
  const closed = server.close()
  t.match(await idle.ended, { code: 'LINK_LOST' })
  await t.rejects(idle.execute('query-version'), { code: 'LINK_LOST' })
  commit(await group.commit())
  t.match(await reply, { checkpoint: 1 })
  await closed
  t.notOk(existsSync(path), 'the socket is gone')
  await t.rejects(QmpClient.connect(path), { code: 'NOT_FOUND' })
})

void t.test('the socket is only the owner’s, whatever the umask', async (t) => {
  const before = process.umask(0)
  t.teardown(() => process.umask(before))
  const { path, folder } = await serve(t)
  t.equal(lstatSync(path).mode & 0o777, 0o600)
  t.same(readdirSync(folder), ['control.sock'], 'nothing else is left there')
  await client(t, path)
})

void t.test(
  'the folder of the socket is made where only it is missing, and is private',
  async (t) => {
    const folder = socketFolder(t)
    const options = { context: contextOf(), events: new EventBus(), logger: SILENT }
    const server = new QmpServer({ ...options, path: join(folder, 'new', 'control.sock') })
    await server.listen()
    t.teardown(() => server.close())
    t.equal(statSync(join(folder, 'new')).mode & 0o777, 0o700)
    const missing = new QmpServer({ ...options, path: join(folder, 'no', 'such', 'control.sock') })
    await t.rejects(missing.listen(), { code: 'IO', message: /no\/such\/control.sock/ })
    await missing.close()
    const long = new QmpServer({ ...options, path: join(folder, 'x'.repeat(200)) })
    await t.rejects(long.listen(), { code: 'INVALID', message: /too long/ })
    await long.close()
  },
)

void t.test('a living server keeps its socket; a file is left alone', async (t) => {
  const { path, folder } = await serve(t, new FakeGroup('vm1'))
  const options = { context: contextOf(), events: new EventBus(), logger: SILENT }
  const second = new QmpServer({ ...options, path })
  await t.rejects(second.listen(), {
    code: 'IN_USE',
    message: /another server listens on the control socket/,
  })
  await second.close()
  const kept = await client(t, path)
  t.match(await kept.execute('replication-status'), { groups: [{ group: 'vm1' }] })

  const file = join(folder, 'file')
  writeFileSync(file, 'precious')
  const greedy = new QmpServer({ ...options, path: file })
  await t.rejects(greedy.listen(), { code: 'IN_USE', message: /something else/ })
  await greedy.close()
  t.ok(lstatSync(file).isFile())
  t.same(readdirSync(folder).sort(), ['control.sock', 'file'])
})

void t.test('closing leaves a socket alone that somebody else put in place', async (t) => {
  const { path, server, folder } = await serve(t)
  const other = createServer().listen(join(folder, 'other'))
  await once(other, 'listening')
  t.teardown(() => other.close())
  renameSync(join(folder, 'other'), path)
  await server.close()
  t.ok(lstatSync(path).isSocket())
})

void t.test('the client says what is wrong with what it connects to', async (t) => {
  const folder = socketFolder(t)
  const path = join(folder, 'other.sock')
  const message = /no colotap server answers: .*--control/
  await t.rejects(QmpClient.connect(path), { code: 'NOT_FOUND', message })
  for (const greeting of ['SSH-2.0\r\n', '{"hello":1}\n', '[]\n']) {
    const other = createServer((socket) => socket.end(greeting)).listen(path)
    await once(other, 'listening')
    await t.rejects(QmpClient.connect(path), { message: /does not speak QMP/ }, greeting)
    await new Promise((done) => other.close(done))
  }
})
