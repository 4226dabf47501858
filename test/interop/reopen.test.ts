/** Pipelines of a running server exchanged under other people's clients, as an operator does it: snapshot, reopen, commit. */

import { spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import t from 'tap'

import { NbdClient } from '../../nbd/client.ts'
import { mustRun, startChild, type Result } from '../support/child.ts'
import { colotap, serveColotap, type ColotapServer } from '../support/colotap.ts'
import { groupState, startPair } from '../support/replica-pair.ts'
import { tempDirectory, type Scope } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'

const MIB = 1024 * 1024
const SIZE = 32 * MIB
/** Snapshots, moves and commits under one load. */
const ROUNDS = Number(process.env['MOVE_ROUNDS'] ?? 3)

interface Shown {
  readonly state: string
  readonly pipeline: string
  readonly connections: number
  readonly error: string | null
}

async function newImage(scope: Scope, path: string, size = SIZE): Promise<void> {
  await mustRun(scope, 'qemu-img', ['create', '-q', '-f', 'qcow2', path, String(size)])
}

async function check(scope: Scope, path: string): Promise<void> {
  await mustRun(scope, 'qemu-img', ['check', '-q', '-f', 'qcow2', path])
}

async function shown(server: ColotapServer, name = 'disk'): Promise<Shown | undefined> {
  const exports = (await (await server.qmp()).execute('query-block-exports')) as (Shown & {
    id: string
  })[]
  return exports.find(({ id }) => id === name)
}

async function pause(server: ColotapServer, timeoutMs = 60_000): Promise<void> {
  await (await server.qmp()).execute('export-pause', { export: 'disk', timeoutMs })
}

async function resume(server: ColotapServer, pipeline?: string): Promise<void> {
  const chosen = pipeline === undefined ? {} : { pipeline }
  await (await server.qmp()).execute('export-resume', { export: 'disk', ...chosen })
}

async function reopen(server: ColotapServer, pipeline: string): Promise<void> {
  await (await server.qmp()).execute('export-reopen', { pipeline })
}

/** As `colotap image snapshot` does it. */
async function snapshot(scope: Scope, below: string, to: string): Promise<void> {
  const { code, stderr } = await colotap(scope, ['image', 'snapshot', below, '--to', to])
  if (code !== 0) throw new Error(`no snapshot of ${below}: ${stderr}`)
}

/** What flock(1) needs to hold a lock until it is killed, in one process. */
function holding(path: string): string[] {
  return ['--no-fork', path, 'sh', '-c', 'echo held; exec sleep 600']
}

/** fio with everything that it wrote verified at once, and once more at the end. */
function fio(uri: string, ...args: string[]): string[] {
  return [
    ...['--ioengine=nbd', `--uri=${uri}`, '--randseed=20250101', '--name=moved'],
    ...['--rw=randwrite', '--bsrange=512-64k', '--iodepth=16', `--size=${SIZE}`],
    ...['--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0', '--fsync=64', ...args],
  ]
}

void t.test('fio sees nothing of snapshots, moves and commits but the time', async (t) => {
  const directory = await tempDirectory(t)
  const base = join(directory, 'base.qcow2')
  await newImage(t, base)
  const server = await serveColotap(t, { exports: { disk: `qcow:${base}` }, directory })
  let moving = true
  const load = (async (): Promise<number> => {
    let runs = 0
    do {
      await mustRun(t, 'fio', fio(server.uri('disk'), '--rate=6m'))
      runs += 1
    } while (moving)
    return runs
  })()
  for (let round = 1; round <= ROUNDS; round += 1) {
    const overlay = join(directory, `overlay${round}.qcow2`)
    await snapshot(t, `qcow:${base}`, `qcow:${overlay}`)
    await reopen(server, `qcow:${overlay}`)
    await pause(server)
    await check(t, base)
    await check(t, overlay)
    t.match(await colotap(t, ['image', 'commit', `qcow:${overlay}`]), { code: 0 })
    await resume(server, `qcow:${base}`)
  }
  moving = false
  t.ok((await load) > 0)
  t.match(await shown(server), { state: 'serving', pipeline: `qcow:${base}`, error: null })
  t.same(await server.stop(), CLEAN_EXIT)
  await check(t, base)
  const again = await serveColotap(t, { exports: { disk: `qcow:${base}` } })
  await mustRun(t, 'fio', fio(again.uri('disk'), '--verify_only=1'))
  t.same(await again.stop(), CLEAN_EXIT)
})

/** qemu-io with its input open, so that it stays connected from one command to the next. */
class QemuIo {
  readonly #process
  #output = ''
  #wake = (): void => undefined

  constructor(scope: Scope, uri: string) {
    const args = ['--pdeathsig', 'KILL', '--', 'qemu-io', '-f', 'raw', uri]
    this.#process = spawn('setpriv', args, { stdio: ['pipe', 'pipe', 'inherit'] })
    this.#process.stdout.setEncoding('utf8').on('data', (text: string) => {
      this.#output += text
      this.#wake()
    })
    scope.teardown(() => this.#process.kill('SIGKILL'))
  }

  /** Sends a command, and resolves with what it prints, up to its statistics. */
  send(command: string): Promise<string> {
    this.#output = ''
    this.#process.stdin.write(`${command}\n`)
    return new Promise((resolve) => {
      this.#wake = () => {
        if (/ops\/sec\)|error|failed/i.test(this.#output)) resolve(this.#output)
      }
    })
  }
}

void t.test('qemu-io stays connected, and reads after a move what it wrote before', async (t) => {
  const directory = await tempDirectory(t)
  const base = join(directory, 'base.vhd')
  const overlay = join(directory, 'overlay.vhd')
  t.match(await colotap(t, ['image', 'create', `vhd:${base}`, '--size', '32M']), { code: 0 })
  const server = await serveColotap(t, { exports: { disk: `vhd:${base}` }, directory })
  const client = new QemuIo(t, server.uri('disk'))
  t.match(await client.send('write -P 17 1M 64k'), /wrote 65536/)
  await snapshot(t, `vhd:${base}`, `vhd:${overlay}`)
  const run = (...args: string[]): Promise<Result> =>
    colotap(t, [...args, '--control', server.control])
  const moved = await run('reopen', 'disk', '--pipeline', `valve:all?iops=100000|vhd:${overlay}`)
  t.match(moved, { code: 0, stdout: /disk is served as valve:.*its clients waited for/ })
  t.match(await shown(server), { connections: 1, state: 'serving' })
  t.match(await client.send('read -P 17 1M 64k'), /read 65536/)
  t.match(await run('pause', 'disk'), { code: 0, stdout: /disk is paused/ })
  t.match(await shown(server), { connections: 1, state: 'paused' })
  const waiting = client.send('write -P 18 2M 64k')
  t.match(await run('resume'), { code: 0, stdout: /disk is served as valve/ })
  t.match(await waiting, /wrote 65536/)
  t.match(await client.send('read -P 18 2M 64k'), /read 65536/)
  t.same(await server.stop(), CLEAN_EXIT)
  t.match(await colotap(t, ['image', 'check', `vhd:${overlay}`]), { code: 0 })
})

void t.test('a pipeline that cannot be opened is refused, and no client notices', async (t) => {
  const directory = await tempDirectory(t)
  const at = (name: string): string => join(directory, name)
  await newImage(t, at('base'))
  await newImage(t, at('small'), SIZE / 2)
  await newImage(t, at('taken'))
  await newImage(t, at('parent'))
  const child = ['-b', at('parent'), '-F', 'qcow2', at('orphan')]
  await mustRun(t, 'qemu-img', ['create', '-q', '-f', 'qcow2', ...child])
  await writeFile(at('cut'), (await readFile(at('base'))).subarray(0, 100))
  await writeFile(at('noise'), Buffer.alloc(65536, 'noise'))
  await mustRun(t, 'rm', [at('parent')])
  const holder = startChild(t, 'flock', holding(at('taken')))
  await holder.printed('held')

  const server = await serveColotap(t, { exports: { disk: `qcow:${at('base')}` }, directory })
  const address = { kind: 'unix', path: server.socket } as const
  const client = await NbdClient.connect({ address, exportName: 'disk' })
  const cases: [pipeline: string, reason: RegExp][] = [
    [`qcow:${at('missing')}`, /does not exist/],
    [`qcow:${at('noise')}`, /no QCOW|magic|not a/i],
    [`qcow:${at('cut')}`, /cut/],
    [`qcow:${at('small')}`, /16777216 bytes, and clients use one of 33554432/],
    [`qcow:${at('orphan')}`, /parent/],
    [`qcow:${at('taken')}`, /in use by/],
    [`aio:${directory}`, /directory/],
    ['qcow', /no driver is named/],
    [`qcow:${at('base')}?cash=1M`, /did you mean cache/],
    [`remus:127.0.0.1:9|qcow:${at('base')}`, /replication layer cannot be changed/],
  ]
  for (const [index, [pipeline, reason]] of cases.entries()) {
    const bytes = Buffer.alloc(4096, index + 1)
    const writing = client.write(bytes, index * 4096)
    await t.rejects(reopen(server, pipeline), { message: reason })
    await writing
    const into = Buffer.alloc(4096)
    await client.read(into, index * 4096)
    t.ok(into.equals(bytes))
    t.match(await shown(server), { state: 'serving', pipeline: `qcow:${at('base')}`, error: null })
  }
  await client.disconnect()
  t.same(await server.stop(), CLEAN_EXIT)
  await check(t, at('base'))
})

void t.test(
  'a pause that nobody ends ends by itself, and fails where its image is taken',
  async (t) => {
    const directory = await tempDirectory(t)
    const base = join(directory, 'base')
    await newImage(t, base)
    const server = await serveColotap(t, { exports: { disk: `qcow:${base}` }, directory })
    const address = { kind: 'unix', path: server.socket } as const
    const client = await NbdClient.connect({ address, exportName: 'disk' })
    await pause(server, 3000)
    await client.write(Buffer.alloc(512, 1), 0)
    t.match(await shown(server), { state: 'serving' })

    await pause(server, 3000)
    const holder = startChild(t, 'flock', holding(base))
    await holder.printed('held')
    await t.rejects(client.write(Buffer.alloc(512, 2), 0), { code: 'IO' })
    t.match(await shown(server), { state: 'failed', error: /in use by/, connections: 1 })
    const status = await colotap(t, ['status', '--control', server.control])
    t.match(status, { code: 0, stdout: /disk +32 MiB, 1 client, failed: .*in use by/ })
    holder.signal('SIGKILL')
    await holder.exited
    await resume(server)
    await client.write(Buffer.alloc(512, 3), 0)
    await client.disconnect()
    t.same(await server.stop(), CLEAN_EXIT)
  },
)

void t.test(
  'a replicated disk goes onto an overlay on both sides, and stays protected',
  async (t) => {
    const pair = await startPair(t, {
      mode: 'colo',
      disks: { disk: SIZE },
      settings: ['heartbeat=50', 'timeout=1000'],
      formats: { primary: 'qcow', secondary: 'qcow' },
    })
    const { primary, secondary } = pair
    const address = { kind: 'unix', path: primary.server.socket } as const
    const client = await NbdClient.connect({ address, exportName: 'disk' })
    await client.write(Buffer.alloc(4096, 1), 0)
    await primary.qmp.execute('replication-checkpoint')
    for (const host of [primary, secondary]) {
      const image = host.images['disk'] ?? ''
      const overlay = `${image}.overlay`
      await pause(host.server)
      const waiting = host === primary ? client.write(Buffer.alloc(4096, 2), 4096) : undefined
      if (host === secondary) await client.write(Buffer.alloc(4096, 3), 8192)
      // Checkpoints need both sides and the link: all of it goes on without the image.
      for (let count = 0; count < 3; count += 1)
        await primary.qmp.execute('replication-checkpoint', { timeoutMs: 30_000 })
      await snapshot(t, `qcow:${image}`, `qcow:${overlay}`)
      const pipeline = host.place.exports['disk']?.replace(/qcow:.*/, `qcow:${overlay}`) ?? ''
      await t.rejects(resume(host.server, `qcow:${overlay}`), {
        message: /replication layer cannot be changed.*begin the pipeline with colo:/,
      })
      await resume(host.server, pipeline)
      await waiting
      t.match(await groupState(primary.qmp), { protection: 'protected', error: null })
    }
    await client.write(Buffer.alloc(4096, 4), 12288)
    await primary.qmp.execute('replication-checkpoint')
    await client.write(Buffer.alloc(4096, 9), 0)
    await client.disconnect()
    primary.server.child.signal('SIGKILL')
    await primary.server.child.exited
    await secondary.qmp.execute('replication-promote', { force: true })
    const other = { kind: 'unix', path: secondary.server.socket } as const
    const reader = await NbdClient.connect({ address: other, exportName: 'disk' })
    const into = Buffer.alloc(16384)
    await reader.read(into, 0)
    t.strictSame([into[0], into[4096], into[8192], into[12288]], [1, 2, 3, 4])
    await reader.disconnect()
    t.same(await secondary.server.stop(), CLEAN_EXIT)
    const image = secondary.images['disk'] ?? ''
    await check(t, image)
    await check(t, `${image}.overlay`)
  },
)
