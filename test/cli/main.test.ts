import { join } from 'node:path'

import t, { type Test } from 'tap'

import { outcome } from '../../cli/main.ts'
import { EventBus } from '../../control/events.ts'
import { QmpServer } from '../../control/qmp-server.ts'
import { VERSION } from '../../control/version.ts'
import { Fault } from '../../core/fault.ts'
import { SILENT } from '../../core/logger.ts'
import { contextOf, FakeGroup, lost } from '../control/fake-group.ts'
import { socketFolder } from '../control/socket-folder.ts'

interface Ran {
  readonly code: number
  readonly out: string
  readonly complaint: string | undefined
}

async function run(...args: string[]): Promise<Ran> {
  let out = ''
  const terminal = { print: (text: string) => void (out += `${text}\n`), env: {}, uid: 0, pid: 1 }
  const { code, complaint } = await outcome(args, terminal)
  return { code, out, complaint }
}

async function serveFakes(t: Test, ...groups: FakeGroup[]): Promise<string> {
  const path = join(socketFolder(t), 'control.sock')
  const context = contextOf(...groups)
  const server = new QmpServer({ path, context, events: new EventBus(), logger: SILENT })
  await server.listen()
  t.teardown(() => server.close())
  return path
}

void t.test('a command line that is not understood says so in one line and gives 2', async (t) => {
  const cases: [string[], RegExp][] = [
    [[], /no command is given \(see: colotap --help\)/],
    [['sreve'], /unknown command "sreve", did you mean "serve"\?/],
    [['frobnicate'], /unknown command "frobnicate" \(see/],
    [['--hlep'], /unknown option "--hlep", did you mean "--help"\?/],
    [['serve', '--exprot', 'a=ram:1M'], /unknown option --exprot, did you mean --export\?/],
    [['serve', '--http', '127.0.0.1:80'], /unknown option --http/],
    [['serve', '-x'], /unknown option -x/],
    [['serve', 'ram:1M'], /unexpected argument "ram:1M"/],
    [['serve', '--export'], /--export needs a value: --export NAME=PIPELINE/],
    [['serve', '--export', '--listen', 'unix:/x'], /--export needs a value/],
    [['serve', '--export='], /--export needs a value/],
    [['serve', '--read-only=yes'], /--read-only takes no value/],
    [['serve', '--control', '/a', '--control', '/b'], /--control is given twice/],
    [['serve'], /nothing to serve.*colotap serve --help/],
    [['serve', '--export', 'a=ram:1M'], /nowhere to serve/],
    [['status', 'vm1', 'vm2'], /unexpected argument "vm2"/],
    [['status', '--froce'], /unknown option --froce/],
    [['promote', '--froce'], /did you mean --force\?/],
    [['checkpoint', '--timeout-ms', 'soon'], /"soon" is not a whole number/],
    [['top', '--interval-ms', '0'], /"0" is not a number of milliseconds/],
    [['version', 'now'], /unexpected argument "now"/],
  ]
  for (const [args, message] of cases) {
    const { code, out, complaint } = await run(...args)
    t.match({ code, complaint }, { code: 2, complaint: message }, args.join(' '))
    t.notMatch(complaint, /\n/)
    t.equal(out, '')
  }
})

void t.test('every command has its help, and the overview names every command', async (t) => {
  const overview = await run('--help')
  t.equal(overview.code, 0)
  for (const name of ['serve', 'status', 'top', 'checkpoint', 'events', 'demo', 'version']) {
    t.match(overview.out, new RegExp(`^  ${name} `, 'm'))
    const { code, out } = await run(name, '--help')
    t.equal(code, 0)
    t.match(out, new RegExp(`^usage: colotap ${name} `))
    t.match(out, /--help/)
    t.equal((await run('help', name)).out, out)
    t.equal((await run(name, '--nonsense', '-h')).out, out, 'help goes before complaints')
  }
})

void t.test('version prints the version', async (t) => {
  for (const args of [['version'], ['--version']])
    t.same(await run(...args), { code: 0, out: `colotap ${VERSION}\n`, complaint: undefined })
})

void t.test('without a server the commands say which socket was tried', async (t) => {
  const path = join(socketFolder(t), 'none.sock')
  for (const name of ['status', 'top', 'checkpoint', 'promote', 'events']) {
    const { code, complaint } = await run(name, '--control', path)
    t.equal(code, 1)
    t.match(complaint, /^no colotap server answers: .*none\.sock \(start .*\)$/)
  }
})

void t.test('a configuration that cannot be used is a failure with its place', async (t) => {
  const missing = join(socketFolder(t), 'missing.toml')
  t.match(await run('serve', '--config', missing), { code: 1, complaint: /missing\.toml/ })
})

void t.test('status is readable, and with --json it is the reply as it is', async (t) => {
  const group = new FakeGroup('vm1', {
    protection: 'unprotected',
    reason: 'the link to 127.0.0.1:9000 is down',
    peer: null,
    checkpoint: 12,
    durable: false,
    error: 'commit 13 failed: disk full',
    ramdiskBytes: 2 << 20,
  })
  const path = await serveFakes(t, group)
  const { code, out } = await run('status', '--control', path)
  t.equal(code, 0)
  const expected = [
    /^group vm1 \(colo\): primary, unprotected$/m,
    /^ {2}protection .*unprotected: the link to 127\.0\.0\.1:9000 is down$/m,
    /^ {2} +.*bring the secondary or its link back/m,
    /^ {2}checkpoint +12, term 1; held in memory/m,
    /^ {2}peer +none connected$/m,
    /^ {2}held +2 MiB/m,
    /^ {2}disk disk0 +1 GiB, 4 KiB changed/m,
    /^ {2}error +commit 13 failed: disk full$/m,
    /^exports\n {2}disk0 +1 GiB, 2 clients$/m,
  ]
  for (const line of expected) t.match(out, line)
  const json = await run('status', '--json', '--control', path, 'vm1')
  t.strictSame(JSON.parse(json.out), { groups: [group.state] })
  t.match(await run('status', '--control', path, 'vm9'), { code: 1, complaint: /'vm9'.*vm1/ })

  const none = await serveFakes(t)
  t.match((await run('status', '--control', none)).out, /^no replication groups/)
})

void t.test('checkpoint reports its numbers, or why there is none', async (t) => {
  const group = new FakeGroup('vm1')
  const path = await serveFakes(t, group)
  t.match(await run('checkpoint', '--control', path, '--timeout-ms', '500'), {
    code: 0,
    out: 'checkpoint 1 is committed: pause 900 µs, of it commit 400 µs, 8 KiB\n',
  })
  const json = await run('checkpoint', 'vm1', '--json', '--control', path)
  t.strictSame(JSON.parse(json.out), { checkpoint: 2, pauseUs: 900, commitUs: 400, bytes: 8192 })
  t.same(group.calls, ['checkpoint 500', 'checkpoint without limit'])
  group.onCheckpoint = () => Promise.reject(lost())
  t.same(await run('checkpoint', '--control', path), {
    code: 1,
    out: '',
    complaint: lost().message,
  })
  t.match(await run('checkpoint', '--control', path, '--timeout-ms', '0'), {
    code: 1,
    complaint: /'timeoutMs' is 0/,
  })
})

void t.test('promote shows the group as it is then, or why it was not promoted', async (t) => {
  const group = new FakeGroup('vm1', { role: 'secondary' })
  const path = await serveFakes(t, group)
  group.promotion = new Fault('NOT_PERMITTED', 'the primary is connected', {
    remedy: 'use --force',
  })
  t.match(await run('promote', '--control', path), {
    code: 1,
    complaint: 'the primary is connected (use --force)',
  })
  group.promotion = undefined
  t.match(await run('promote', '--force', '--control', path), {
    code: 0,
    out: /^group vm1 \(colo\): active \(serving alone\)/,
  })
  t.same(group.calls, ['promote gently', 'promote by force'])
})
