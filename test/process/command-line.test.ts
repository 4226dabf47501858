/** `colotap` as a process, as users start it: output, signals, exit codes. Needs the compiled files (npm run build). */

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { QmpClient } from '../../control/qmp-client.ts'
import { socketFolder } from '../control/socket-folder.ts'

const LAUNCHER = fileURLToPath(new URL('../../bin/colotap', import.meta.url))

class Process {
  readonly child: ChildProcess
  out = ''
  err = ''
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>

  constructor(t: Test, args: readonly string[], env: Record<string, string> = {}) {
    this.child = spawn(process.execPath, [LAUNCHER, ...args], {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    this.child.stdout!.on('data', (chunk: Buffer) => (this.out += chunk.toString()))
    this.child.stderr!.on('data', (chunk: Buffer) => (this.err += chunk.toString()))
    this.ended = once(this.child, 'close').then(([code, signal]) => ({
      code: code as number | null,
      signal: signal as NodeJS.Signals | null,
    }))
    t.teardown(() => this.child.kill('SIGKILL'))
  }

  /** Waits until `text` was printed; fails when the process ends first. */
  printed(text: string): Promise<void> {
    return this.shown(text, 1)
  }

  /** Waits until `text` was printed so many times; fails when the process ends first. */
  async shown(text: string, times: number): Promise<void> {
    const isShown = (): boolean => this.out.split(text).length > times
    while (!isShown()) {
      const ended = await Promise.race([
        once(this.child.stdout!, 'data').then(() => false),
        this.ended.then(() => true),
      ])
      if (ended && !isShown()) throw new Error(`it ended: ${this.err}`)
    }
  }
}

interface Serving {
  readonly folder: string
  readonly control: string
  readonly process: Process
}

async function serving(
  t: Test,
  args: readonly string[] = [],
  env: Record<string, string> = {},
): Promise<Serving> {
  const folder = socketFolder(t)
  const control = join(folder, 'control.sock')
  const nbd = `unix:${join(folder, 'nbd.sock')}`
  const started = new Process(
    t,
    ['serve', '--export', 'disk=ram:1M', '--listen', nbd, '--control', control, ...args],
    env,
  )
  await started.printed('ready\n')
  return { folder, control, process: started }
}

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  void t.test(`${signal} ends a server in order, with 0 and nothing left`, async (t) => {
    const { process, folder } = await serving(t)
    process.child.kill(signal)
    t.strictSame(await process.ended, { code: 0, signal: null })
    t.equal(process.out, 'ready\n', 'that is all it printed')
    t.notOk(existsSync(join(folder, 'nbd.sock')) || existsSync(join(folder, 'control.sock')))
    const messages = process.err
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { msg: string })
    t.equal(messages.at(-1)!.msg, 'stopped', 'the log is whole')
    t.notOk(messages.some(({ msg }) => msg === 'something was left open'))
  })
}

void t.test('the command quit ends a server like a signal', async (t) => {
  const { process, control } = await serving(t)
  const client = await QmpClient.connect(control)
  t.same(await client.execute('quit'), {})
  t.strictSame(await process.ended, { code: 0, signal: null })
})

void t.test('a second signal ends at once, with 1', async (t) => {
  const { process, folder } = await serving(t)
  // A client in the middle of its handshake, which the server gives time to leave.
  const client = connect({ path: join(folder, 'nbd.sock'), allowHalfOpen: true })
  client.on('error', () => undefined)
  t.teardown(() => client.destroy())
  await once(client, 'data')
  process.child.kill('SIGTERM')
  process.child.kill('SIGINT')
  t.match(await process.ended, { code: 1 })
})

void t.test('a failed start gives 1, one line for people, and no "ready"', async (t) => {
  const { control, folder } = await serving(t)
  const nbd = `unix:${join(folder, 'other.sock')}`
  const cases: [string[], RegExp][] = [
    [['--export', 'disk=ram:1M', '--control', control], /control socket: .*control\.sock/],
    [['--export', 'disk=nonsense:x', '--control', `${control}.2`], /nonsense/],
    [['--export', 'disk=ram:nonsense', '--control', `${control}.2`], /nonsense/],
  ]
  for (const [args, message] of cases) {
    const failed = new Process(t, ['serve', '--listen', nbd, '--log-level', 'silent', ...args])
    t.strictSame(await failed.ended, { code: 1, signal: null })
    t.match(failed.err, /^colotap: [^\n]+\n$/)
    t.match(failed.err, message)
    t.equal(failed.out, '')
    t.notOk(existsSync(join(folder, 'other.sock')), 'nothing is left')
  }
})

void t.test('a usage error gives 2 and one line', async (t) => {
  const failed = new Process(t, ['serve', '--exprot', 'x'])
  t.strictSame(await failed.ended, { code: 2, signal: null })
  t.match(failed.err, /^colotap: unknown option --exprot, did you mean --export\?[^\n]*\n$/)
})

void t.test('a configuration file is served', async (t) => {
  const folder = socketFolder(t)
  const control = join(folder, 'control.sock')
  const file = join(folder, 'colotap.toml')
  const disk = '[[export]]\nname = "disk"\npipeline = "ram:3M"\nread-only = true\n'
  writeFileSync(file, `listen = ["tcp:127.0.0.1:0"]\ncontrol = "${control}"\n${disk}`)
  const server = new Process(t, ['serve', '--config', file])
  await server.printed('ready\n')
  const status = new Process(t, ['status', '--control', control])
  t.match(await status.ended, { code: 0 })
  t.match(status.out, /disk +3 MiB, read-only, no client/)
  server.child.kill('SIGTERM')
  t.match(await server.ended, { code: 0 })
})

void t.test('systemd is told when the server is ready and when it stops', async (t) => {
  const folder = socketFolder(t)
  const told = join(folder, 'told')
  const tool = join(folder, 'systemd-notify')
  writeFileSync(tool, `#!/bin/sh\necho "$1" >> "${told}"\n`)
  chmodSync(tool, 0o755)
  const { process: server } = await serving(t, [], {
    NOTIFY_SOCKET: '/nowhere',
    PATH: `${folder}${delimiter}${process.env['PATH'] ?? ''}`,
  })
  server.child.kill('SIGTERM')
  t.match(await server.ended, { code: 0 })
  t.equal(readFileSync(told, 'utf8'), 'READY=1\nSTOPPING=1\n')
})

void t.test('events ends well when interrupted, and fails when the server goes', async (t) => {
  const { process: server, control } = await serving(t)
  const [interrupted, deserted] = [
    new Process(t, ['events', '--control', control]),
    new Process(t, ['events', '--control', control]),
  ]
  await Promise.all([interrupted.printed('watching'), deserted.printed('watching')])
  interrupted.child.kill('SIGINT')
  t.strictSame(await interrupted.ended, { code: 0, signal: null })
  server.child.kill('SIGTERM')
  t.match(await server.ended, { code: 0 })
  t.strictSame(await deserted.ended, { code: 1, signal: null })
  t.match(deserted.err, /^colotap: [^\n]*control\.sock[^\n]*\n$/)
})

void t.test(
  'top shows the status anew until it is interrupted, and fails when the server goes',
  async (t) => {
    const { process: server, control } = await serving(t)
    const often = ['top', '--control', control, '--interval-ms', '20']
    const [interrupted, deserted] = [new Process(t, often), new Process(t, [...often, '--json'])]
    const none = 'no replication groups: nothing here is replicated\n'
    await Promise.all([interrupted.shown(none, 3), deserted.shown('{"groups":[]}\n', 3)])
    interrupted.child.kill('SIGINT')
    t.strictSame(await interrupted.ended, { code: 0, signal: null })
    t.equal(interrupted.err, '')
    server.child.kill('SIGTERM')
    t.match(await server.ended, { code: 0 })
    t.strictSame(await deserted.ended, { code: 1, signal: null })
    t.match(deserted.err, /^colotap: [^\n]*control\.sock[^\n]*\n$/)
  },
)
