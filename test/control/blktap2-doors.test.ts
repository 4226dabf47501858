import {
  closeSync,
  createReadStream,
  existsSync,
  openSync,
  readdirSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'

import t, { type Test } from 'tap'

import { Blktap2Doors } from '../../control/blktap2-doors.ts'
import { SILENT } from '../../core/logger.ts'
import type { CheckpointResult } from '../../replication/group.ts'
import { contextOf, FakeGroup, lost } from './fake-group.ts'
import { socketFolder } from './socket-folder.ts'

interface Opened {
  readonly doors: Blktap2Doors
  readonly folder: string
}

/** Groups at 192.0.2.7:9000 and the ports after it. */
async function open(t: Test, ...groups: FakeGroup[]): Promise<Opened> {
  const folder = socketFolder(t)
  const doors = new Blktap2Doors({ folder, context: contextOf(...groups), logger: SILENT })
  t.teardown(() => doors.close())
  await doors.open(
    groups.map(({ name, state }, index) => ({
      group: name,
      mode: state.mode,
      target: `192.0.2.7:${9000 + index}`,
    })),
  )
  return { doors, folder }
}

class Client {
  readonly socket: Socket
  readonly ended: Promise<unknown>
  #heard = ''
  #watchers: (() => void)[] = []

  constructor(t: Test, path: string) {
    this.socket = connect(path)
    this.socket.on('error', () => undefined)
    this.socket.on('data', (chunk) => {
      this.#heard += chunk.toString()
      for (const look of this.#watchers) look()
    })
    this.ended = once(this.socket, 'close')
    t.teardown(() => this.socket.destroy())
  }

  /** The next four letters. */
  async answer(): Promise<string> {
    while (this.#heard.length < 4)
      await new Promise<void>((resolve) => this.#watchers.push(resolve))
    const answer = this.#heard.slice(0, 4)
    this.#heard = this.#heard.slice(4)
    return answer
  }

  ask(text: string): Promise<string> {
    this.socket.write(text)
    return this.answer()
  }
}

/** Makes the checkpoints of a group wait: resolves when one has begun, with what ends it. */
function held(group: FakeGroup): Promise<() => Promise<void>> {
  return new Promise((begun) => {
    group.onCheckpoint = () =>
      new Promise<CheckpointResult>((resolve) =>
        begun(async () => {
          group.onCheckpoint = () => group.commit()
          resolve(await group.commit())
        }),
      )
  })
}

void t.test('a COLO group has a socket, named and guarded as toolstacks expect', async (t) => {
  const group = new FakeGroup('vm1')
  const { folder, doors } = await open(t, group)
  t.same(readdirSync(folder), ['colo_192.0.2.7_9000'])
  const path = join(folder, 'colo_192.0.2.7_9000')
  t.equal(statSync(path).mode & 0o777, 0o600)
  const client = new Client(t, path)
  t.same([await client.ask('flush'), await client.ask('flush')], ['done', 'done'])
  t.equal(group.state.checkpoint, 2)
  group.onCheckpoint = () => Promise.reject(lost())
  t.equal(await client.ask('flush'), 'fail')
  group.become('secondary')
  t.equal(await client.ask('flush'), 'fail')
  t.equal(group.calls.length, 3, 'a secondary is not even asked')
  await doors.close()
  t.same(readdirSync(folder), [])
  await client.ended
})

void t.test(
  'a flush while another runs fails, on whatever connection, and garbage harms nobody',
  async (t) => {
    const [group, other] = [new FakeGroup('vm1'), new FakeGroup('vm2')]
    const { folder } = await open(t, group, other)
    const path = join(folder, 'colo_192.0.2.7_9000')
    const [one, two, three] = [new Client(t, path), new Client(t, path), new Client(t, path)]
    const begun = held(group)
    one.socket.write('flush')
    const end = await begun
    t.equal(await two.ask('flush'), 'fail')
    t.equal(await three.ask('nonsense'), 'fail')
    t.equal(await new Client(t, join(folder, 'colo_192.0.2.7_9001')).ask('flush'), 'done')
    await end()
    t.equal(await one.answer(), 'done')
    t.equal(await two.ask('flush'), 'done')
  },
)

void t.test('a client may end its side first; one that leaves takes nothing with it', async (t) => {
  const group = new FakeGroup('vm1')
  const { folder } = await open(t, group)
  const path = join(folder, 'colo_192.0.2.7_9000')
  const brief = new Client(t, path)
  brief.socket.end('flush')
  t.equal(await brief.answer(), 'done')
  await brief.ended
  const begun = held(group)
  const leaving = new Client(t, path)
  leaving.socket.write('flush')
  const end = await begun
  leaving.socket.destroy()
  await end()
  t.equal(await new Client(t, path).ask('flush'), 'done')
})

void t.test('a client that does not read is dropped, and so is one too many', async (t) => {
  const { folder } = await open(t, new FakeGroup('vm1'))
  const path = join(folder, 'colo_192.0.2.7_9000')
  const deaf = connect(path)
  deaf.on('error', () => undefined)
  deaf.pause()
  // A piece at a time, each of which gets an answer, until the connection is found to be gone.
  while (!deaf.destroyed) {
    deaf.write('x')
    await setImmediate()
  }
  const clients = Array.from({ length: 16 }, () => new Client(t, path))
  for (const client of clients) t.equal(await client.ask('flush'), 'done')
  await new Client(t, path).ended
  t.equal(await clients[0]!.ask('flush'), 'done')
})

void t.test(
  'a Remus group has FIFOs; an answer waits for its reader, but not for the next flush',
  async (t) => {
    const group = new FakeGroup('vm1', { mode: 'remus' })
    const { folder, doors } = await open(t, group)
    const path = join(folder, 'remus_192.0.2.7_9000')
    const names = ['', '.msg', '.owner'].map((end) => `remus_192.0.2.7_9000${end}`)
    t.same(readdirSync(folder).sort(), names)
    for (const name of names) t.equal(statSync(join(folder, name)).mode & 0o777, 0o600)

    /** Writes to the FIFO as a shell does: opened and closed each time. Resolves when the group was asked. */
    const flush = async (text = 'flush'): Promise<void> => {
      const asked = new Promise<void>((resolve) => {
        const { onCheckpoint } = group
        group.onCheckpoint = () => {
          group.onCheckpoint = onCheckpoint
          resolve()
          return onCheckpoint()
        }
      })
      writeFileSync(path, text)
      await asked
    }
    const read = async (): Promise<string> => {
      const stream = createReadStream(`${path}.msg`, { end: 3 })
      const [answer] = (await once(stream, 'data')) as [Buffer]
      stream.destroy()
      return answer.toString()
    }
    await flush()
    t.equal(await read(), 'done')
    await flush('flush\n')
    group.onCheckpoint = () => Promise.reject(lost())
    await flush()
    t.equal(await read(), 'fail', 'the answer that nobody read is not taken for this one’s')
    writeFileSync(path, 'nonsense')
    t.equal(await read(), 'fail')
    await doors.close()
    t.same(readdirSync(folder), [])
  },
)

void t.test('FIFOs of a dead server are replaced, even if a client has them open', async (t) => {
  const group = new FakeGroup('vm1', { mode: 'remus' })
  const { folder, doors } = await open(t, group)
  const second = new Blktap2Doors({ folder, context: contextOf(group), logger: SILENT })
  const targets = [{ group: 'vm1', mode: 'remus', target: '192.0.2.7:9000' }] as const
  await t.rejects(second.open(targets), {
    code: 'IN_USE',
    message: /another server listens on the checkpoint FIFO/,
  })
  await second.close()
  t.equal(readdirSync(folder).length, 3, 'the living server keeps its own')
  const client = openSync(join(folder, 'remus_192.0.2.7_9000'), 'r+')
  t.teardown(() => closeSync(client))
  await doors.close()
  writeFileSync(join(folder, 'remus_192.0.2.7_9000.msg'), 'somebody’s file')
  await t.rejects(second.open(targets), { code: 'IN_USE', message: /something else/ })
  await second.close()
  t.same(readdirSync(folder), ['remus_192.0.2.7_9000.msg'])
})

void t.test('groups that a toolstack could not tell apart are refused', async (t) => {
  const folder = socketFolder(t)
  const doors = new Blktap2Doors({
    folder: join(folder, 'new'),
    context: contextOf(new FakeGroup('a'), new FakeGroup('b')),
    logger: SILENT,
  })
  const target = '127.0.0.1:9000'
  await t.rejects(
    doors.open([
      { group: 'a', mode: 'colo', target },
      { group: 'b', mode: 'colo', target },
    ]),
    { code: 'INVALID', message: /"a" and "b" have the same address: colo_127.0.0.1_9000/ },
  )
  await doors.close()
  t.same(readdirSync(join(folder, 'new')), [])
  t.equal(statSync(join(folder, 'new')).mode & 0o777, 0o700, 'the folder is made, for its owner')
  t.ok(existsSync(folder))
  await doors.open([
    { group: 'a', mode: 'colo', target },
    { group: 'b', mode: 'remus', target: '[::1]:9000' },
  ])
  t.same(readdirSync(join(folder, 'new')).sort()[0], 'colo_127.0.0.1_9000')
  await doors.close()
  await t.rejects(
    new Blktap2Doors({
      folder: join(folder, 'no', 'such'),
      context: contextOf(),
      logger: SILENT,
    }).open([{ group: 'a', mode: 'colo', target }]),
    { code: 'IO', message: /checkpoint socket/ },
  )
})
