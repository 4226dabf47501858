/** The real program as one side of an old pair, as both, and behind the checkpoint sockets of blktap2. */

import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'

import t, { type Test } from 'tap'

import { NbdClient } from '../../nbd/client.ts'
import { oldCommit, OldSecondary, oldSubmit, oldWrite } from '../replication/blktap2/old-wire.ts'
import { mustRun } from '../support/child.ts'
import { colotap, serveColotap, type ColotapServer } from '../support/colotap.ts'
import { createEmptyImage } from '../support/images.ts'
import { groupState, protection, startHost } from '../support/replica-pair.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'

const SIZE = 1024 * 1024
const BLOCK = 4096

function connect(server: ColotapServer): Promise<NbdClient> {
  return NbdClient.connect({
    address: { kind: 'unix', path: server.socket },
    exportName: 'disk',
  })
}

async function read(client: NbdClient, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length)
  await client.read(bytes, 0)
  return bytes
}

/** An old secondary on a port. */
async function startOld(t: Test, port: number): Promise<OldSecondary> {
  const old = new OldSecondary(SIZE)
  const sockets = new Set<net.Socket>()
  const server = net.createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    socket.on('data', (chunk) => socket.write(old.receive(chunk)))
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return old
}

void t.test('a primary protects an old secondary, commanded over the FIFOs of Remus', async (t) => {
  const [port] = await freePorts(1)
  const old = await startOld(t, port!)
  const folder = await tempDirectory(t)
  const image = path.join(folder, 'disk.img')
  await createEmptyImage(image, SIZE)
  const server = await serveColotap(t, {
    exports: { disk: `remus:127.0.0.1:${port}?role=primary&group=vm&wire=blktap2|aio:${image}` },
    args: ['--blktap2-dir', `${folder}/tap`],
  })
  const qmp = await server.qmp()
  await protection(qmp, 'protected')
  const client = await connect(server)
  const fifo = `${folder}/tap/remus_127.0.0.1_${port}`
  const flush = (): Promise<string> =>
    mustRun(t, 'bash', ['-c', 'echo flush > "$0" && head -c 4 "$0.msg"', fifo])
  for (let round = 1; round <= 5; round += 1) {
    await client.write(Buffer.alloc(40 * BLOCK, round), round * BLOCK)
    await client.write(Buffer.alloc(700, 100 + round), 200 * BLOCK + round)
    await client.zero(round * BLOCK, 2 * BLOCK)
    t.equal(await flush(), 'done')
    t.ok(old.disk.equals(await readFile(image)), `checkpoint ${round}`)
  }
  t.same(old.complaints, [])
  t.match(await groupState(qmp), { checkpoint: 5, durable: false })
  await client.disconnect()
  t.equal((await server.stop()).code, 0)
})

void t.test(
  'a secondary keeps what an old primary commits, through a crash and a takeover',
  async (t) => {
    const [port] = await freePorts(1)
    const folder = await tempDirectory(t)
    const image = path.join(folder, 'disk.img')
    await createEmptyImage(image, SIZE)
    const place = {
      exports: { disk: `colo:127.0.0.1:${port}?role=secondary&group=vm&wire=blktap2|aio:${image}` },
      directory: folder,
      args: ['--blktap2-dir', `${folder}/tap`],
    }
    const server = await serveColotap(t, place)
    const primary = net.connect(port!, '127.0.0.1')
    primary.on('error', () => undefined)
    t.teardown(() => primary.destroy())
    primary.write(
      Buffer.concat([oldWrite(8, Buffer.alloc(44 * 1024, 1)), oldSubmit(), oldCommit()]),
    )
    const [answer] = (await once(primary, 'data')) as [Buffer]
    t.equal(answer.toString(), 'done')
    primary.write(oldWrite(8, Buffer.alloc(512, 2)))
    t.match(await groupState(await server.qmp()), { protection: 'protected', durable: true })

    const toolstack = net.connect(`${folder}/tap/colo_127.0.0.1_${port}`)
    t.teardown(() => toolstack.destroy())
    toolstack.write('flush')
    t.equal(String((await once(toolstack, 'data'))[0]), 'fail', 'only a primary takes a flush')

    await server.child.kill()
    const again = await serveColotap(t, place)
    const qmp = await again.qmp()
    t.match(await groupState(qmp), { role: 'secondary', checkpoint: 1 })
    const late = net.connect(port!, '127.0.0.1')
    late.on('error', () => undefined)
    late.write(oldCommit())
    t.equal((await once(late, 'close')).length, 1, 'a primary cannot come back')
    await qmp.execute('replication-promote')
    const client = await connect(again)
    const bytes = await read(client, SIZE)
    const expected = Buffer.alloc(SIZE)
    expected.fill(1, BLOCK, BLOCK + 44 * 1024)
    t.ok(bytes.equals(expected), 'the last checkpoint exactly')
    await client.disconnect()
    t.equal((await again.stop()).code, 0)
  },
)

void t.test('two of ours speak it with each other, and a lost link is not mended', async (t) => {
  const [port] = await freePorts(1)
  const directory = await tempDirectory(t)
  const options = { mode: 'colo', disks: { disk: SIZE }, settings: ['wire=blktap2'] } as const
  const secondary = await startHost(t, options, directory, 'secondary', port!)
  const primary = await startHost(t, options, directory, 'primary', port!)
  await protection(primary.qmp, 'protected')
  const client = await connect(primary.server)
  await client.write(Buffer.alloc(100 * BLOCK, 5), 0)
  await primary.qmp.execute('xen-colo-do-checkpoint')
  const standby = await connect(secondary.server)
  t.ok((await read(standby, 100 * BLOCK)).equals(Buffer.alloc(100 * BLOCK, 5)))
  await client.write(Buffer.alloc(BLOCK, 6), 0)
  t.equal((await read(standby, 1))[0], 5, 'nothing of an epoch that is not committed')

  await secondary.server.child.kill()
  await protection(primary.qmp, 'unprotected')
  t.match(await groupState(primary.qmp), { reason: /start both sides anew/ })
  await t.rejects(primary.qmp.execute('replication-checkpoint'), /no secondary/)
  await client.write(Buffer.alloc(BLOCK, 7), 0)
  const { stdout } = await colotap(t, ['status', '--control', primary.server.control])
  t.match(stdout, /does not heal by itself/)
  await client.disconnect()
  t.equal((await primary.server.stop()).code, 0)
})

void t.test('a peer that speaks the other wire is never taken for protection', async (t) => {
  const [one, two] = await freePorts(2)
  const directory = await tempDirectory(t)
  const cases = [
    [one, ['wire=blktap2', 'timeout=1000'], [], /unprotected/],
    [two, [], ['wire=blktap2'], /unprotected/],
  ] as const
  for (const [index, [port, ours, theirs, expected]] of cases.entries()) {
    const folder = await tempDirectory(t, directory)
    const disks = { disk: SIZE }
    await startHost(t, { mode: 'colo', disks, settings: theirs }, folder, 'secondary', port!)
    const primary = await startHost(
      t,
      { mode: 'colo', disks, settings: ours },
      folder,
      'primary',
      port!,
    )
    await protection(primary.qmp, 'unprotected')
    t.match((await groupState(primary.qmp)).protection, expected, `case ${index}`)
    await t.rejects(primary.qmp.execute('replication-checkpoint'))
    t.notOk(primary.qmp.events.some(({ event }) => event === 'REPLICATION_LINK'))
  }
})

void t.test('what the wire cannot do is refused at the start with advice', async (t) => {
  const [port] = await freePorts(1)
  const folder = await tempDirectory(t)
  const at = `127.0.0.1:${port}`
  const cases: [string[], RegExp][] = [
    [[`remus:${at}?role=primary&wire=blktap|ram:1M`], /wire=blktap.*colotap or blktap2/],
    [
      [
        `remus:${at}?role=secondary&group=a&wire=blktap2|ram:1M`,
        `remus:${at}?role=secondary&group=a&wire=blktap2|ram:1M`,
      ],
      /"a" has a disk already.*address of its own/,
    ],
    [
      [
        `remus:${at}?role=secondary&group=a&wire=blktap2|ram:1M`,
        `remus:${at}?role=secondary&group=b&wire=blktap2|ram:1M`,
      ],
      /belongs to one group.*address of its own/,
    ],
    [
      [
        `remus:${at}?role=secondary&group=a|ram:1M`,
        `remus:${at}?role=secondary&group=b&wire=blktap2|ram:1M`,
      ],
      /belongs to one group/,
    ],
    [[`remus:0.0.0.0:${port}?role=secondary&wire=blktap2|ram:1M`], /--insecure/],
    [[`remus:192.0.2.1:${port}?role=primary&wire=blktap2|ram:1M`], /--insecure/],
    [
      [`remus:${at}?wire=blktap2&tls-creds=/tmp|ram:1M`],
      /tls-creds=.*never encrypted.*leave tls-creds= out/,
    ],
    [[`remus:${at}?wire=blktap2&tls-psk=/tmp/keys|ram:1M`], /tls-psk=.*never encrypted/],
    [[`remus:${at}?wire=blktap2&listen=${at}|ram:1M`], /listen=.*roles cannot be exchanged/],
    [[`remus:${at}?wire=blktap2&peer=${at}|ram:1M`], /peer=.*roles cannot be exchanged/],
    [[`remus:${at}?wire=blktap2&initial=copy|ram:1M`], /initial=copy.*cannot copy/],
    [
      [`remus:${at}?role=primary&group=a|ram:1M`, `remus:${at}?role=primary&group=b|ram:1M`],
      /same address: remus_127.0.0.1.*--blktap2-dir/,
    ],
  ]
  for (const [pipelines, expected] of cases) {
    const { code, stderr } = await colotap(t, [
      'serve',
      ...pipelines.flatMap((pipeline, index) => ['--export', `disk${index}=${pipeline}`]),
      ...['--listen', `unix:${folder}/n`, '--control', `${folder}/c`],
      ...['--state-dir', `${folder}/state`, '--blktap2-dir', `${folder}/tap`],
    ])
    t.equal(code, 1, pipelines.join(' '))
    t.match(stderr.trim().split('\n').at(-1), expected)
  }
})
