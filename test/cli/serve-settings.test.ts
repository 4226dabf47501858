import t from 'tap'

import { Given, UsageError } from '../../cli/command-line.ts'
import type { ServeConfig } from '../../cli/config-file.ts'
import { defaultControlPath } from '../../cli/control-socket.ts'
import { settingsOf, type ServeSettings } from '../../cli/serve-settings.ts'
import { serve } from '../../cli/serve.ts'
import { defaultStateDir } from '../../cli/state-dir.ts'

const NO_FILE: ServeConfig = { exports: [], listen: [] }
const TERMINAL = { print: () => undefined, env: {}, uid: 0, pid: 1 }
const UNIX = 'unix:/run/nbd.sock'

function settings(flags: Record<string, string[]>, config: ServeConfig = NO_FILE): ServeSettings {
  return settingsOf(serve, new Given(new Map(Object.entries(flags)), undefined), config, TERMINAL)
}

void t.test('flags alone are enough', (t) => {
  const flags = { export: ['a=aio:/srv/a=b.img', 'b=ram:1M'], listen: [UNIX, 'tcp:[::1]:0'] }
  t.strictSame(settings(flags), {
    exports: [
      { name: 'a', pipeline: 'aio:/srv/a=b.img', description: '', readOnly: false },
      { name: 'b', pipeline: 'ram:1M', description: '', readOnly: false },
    ],
    listen: [
      { kind: 'unix', path: '/run/nbd.sock' },
      { kind: 'tcp', host: '::1', port: 0 },
    ],
    control: '/run/colotap/control.sock',
    stateDir: '/var/lib/colotap',
    blktap2Dir: undefined,
    logLevel: 'info',
    insecure: false,
    readOnly: false,
    limits: {},
  })
  t.end()
})

void t.test('lists of the file and the flags add up, and else the flag wins', (t) => {
  const file: ServeConfig = {
    exports: [{ name: 'a', pipeline: 'ram:1M', readOnly: true }],
    listen: [UNIX],
    control: '/file.sock',
    logLevel: 'warn',
    blktap2Dir: '/file',
  }
  t.match(settings({}, file), {
    exports: [{ name: 'a', readOnly: true }],
    control: '/file.sock',
    logLevel: 'warn',
    blktap2Dir: '/file',
  })
  const both = settings(
    {
      export: ['b=ram:2M'],
      listen: ['tcp:127.0.0.1:1'],
      control: ['/flag.sock'],
      'log-level': ['error'],
      'blktap2-dir': ['/flag'],
    },
    file,
  )
  t.match(both, { control: '/flag.sock', logLevel: 'error', blktap2Dir: '/flag' })
  t.same(
    both.exports.map(({ name, readOnly }) => [name, readOnly]),
    [
      ['a', true],
      ['b', false],
    ],
  )
  t.equal(both.listen.length, 2)
  t.ok(settings({ 'read-only': [''], export: ['b=ram:2M'] }, file).exports.every((e) => e.readOnly))
  t.ok(settings({}, { ...file, readOnly: true, insecure: true }).insecure)
  t.end()
})

void t.test('settings that cannot be meant are refused', (t) => {
  const cases: [string, Record<string, string[]>, RegExp][] = [
    ['nothing to serve', { listen: [UNIX] }, /nothing to serve.*--export NAME=PIPELINE/],
    ['nowhere to serve', { export: ['a=ram:1M'] }, /nowhere to serve.*--listen/],
    ['no pipeline', { export: ['a'], listen: [UNIX] }, /"a" is not NAME=PIPELINE/],
    ['no name', { export: ['=ram:1M'], listen: [UNIX] }, /must not be empty/],
    ['a long name', { export: [`${'x'.repeat(4097)}=ram:1M`], listen: [UNIX] }, /4096 bytes/],
    ['a line feed', { export: ['a\nb=ram:1M'], listen: [UNIX] }, /control characters/],
    ['twins', { export: ['a=ram:1M', 'a=ram:2M'], listen: [UNIX] }, /two exports are named "a"/],
    ['a bad address', { export: ['a=ram:1M'], listen: ['pigeon:7'] }, /pigeon/],
    [
      'a bad level',
      { export: ['a=ram:1M'], listen: [UNIX], 'log-level': ['loud'] },
      /"loud".*debug/,
    ],
    ['exposure', { export: ['a=ram:1M'], listen: ['tcp:0.0.0.0:1'] }, /0\.0\.0\.0:1.*--insecure/],
    ['exposure', { export: ['a=ram:1M'], listen: ['tcp:[::]:1'] }, /--insecure/],
    ['a name may be anywhere', { export: ['a=ram:1M'], listen: ['tcp:host:1'] }, /--insecure/],
  ]
  for (const [why, flags, message] of cases) t.throws(() => settings(flags), { message }, why)
  t.throws(() => settings({ listen: [UNIX] }), UsageError)
  const exposed = { export: ['a=ram:1M'], listen: ['tcp:0.0.0.0:1'], insecure: [''] }
  t.match(settings(exposed).listen, [{ host: '0.0.0.0' }])
  t.end()
})

void t.test('limits of clients come from the file or the flags', (t) => {
  const file: ServeConfig = {
    exports: [{ name: 'a', pipeline: 'ram:1M' }],
    listen: [UNIX],
    maxConnections: 5,
    handshakeTimeoutMs: 100,
  }
  t.strictSame(settings({}, file).limits, { connections: 5, handshakeMs: 100 })
  const flags = { 'max-connections': ['7'], 'idle-timeout-ms': ['60000'] }
  t.strictSame(settings(flags, file).limits, { connections: 7, handshakeMs: 100, idleMs: 60_000 })
  for (const text of ['0', '-1', '1.5', 'many', '10001', ''])
    t.throws(() => settings({ 'max-connections': [text] }, file), UsageError, `"${text}"`)
  t.throws(() => settings({}, { ...file, idleTimeoutMs: 0.5 }), { code: 'INVALID' })
  t.end()
})

void t.test('a description is a text of the protocol', (t) => {
  const file = (description: string): ServeConfig => ({
    exports: [{ name: 'a', pipeline: 'ram:1M', description }],
    listen: [UNIX],
  })
  t.match(settings({}, file('ä'.repeat(2048))).exports, [{ description: /^ä+$/ }])
  t.throws(() => settings({}, file('ä'.repeat(2049))), { message: /4096 bytes.*export "a"/ })
  t.throws(() => settings({}, file('a\0b')), { message: /description/ })
  t.end()
})

void t.test('the control socket is where the commands look for it', (t) => {
  const cases: [number, string | undefined, string][] = [
    [0, undefined, '/run/colotap/control.sock'],
    [0, '/run/user/0', '/run/colotap/control.sock'],
    [1000, '/run/user/1000', '/run/user/1000/colotap/control.sock'],
    [1000, '', '/run/colotap/control.sock'],
    [1000, undefined, '/run/colotap/control.sock'],
  ]
  for (const [uid, folder, path] of cases)
    t.equal(defaultControlPath({ uid, env: { XDG_RUNTIME_DIR: folder } }), path)
  t.end()
})

void t.test('lasting state has a place that fits who runs the server', (t) => {
  const place = (env: Record<string, string>, uid: number): string => defaultStateDir({ env, uid })
  t.equal(place({}, 0), '/var/lib/colotap')
  t.equal(place({ STATE_DIRECTORY: '/var/lib/vms:/var/lib/other' }, 0), '/var/lib/vms')
  t.equal(place({ HOME: '/home/ada' }, 1000), '/home/ada/.local/state/colotap')
  t.equal(place({ HOME: '/home/ada', XDG_STATE_HOME: '/srv/ada' }, 1000), '/srv/ada/colotap')
  t.equal(
    place({ HOME: '/home/ada', XDG_STATE_HOME: 'ada' }, 1000),
    '/home/ada/.local/state/colotap',
  )
  t.equal(settings({ export: ['a=ram:1M'], listen: [UNIX], 'state-dir': ['/x'] }).stateDir, '/x')
  t.end()
})

void t.test('exports are kept for the clients that file and flags name', (t) => {
  const listen = ['unix:/run/nbd.sock?tls-creds=/etc/tls']
  const file: ServeConfig = {
    exports: [
      { name: 'a', pipeline: 'ram:1M', allow: ['cn:host-a'] },
      { name: 'a=b', pipeline: 'ram:1M' },
      { name: 'c', pipeline: 'ram:1M' },
    ],
    listen,
  }
  const { exports } = settings({ allow: ['a=dn:CN=x', 'a=b=cn:y'] }, file)
  t.strictSame(exports[0]?.clients?.[0], { kind: 'cn', name: 'host-a' })
  t.match(exports[0]?.clients?.[1], { kind: 'dn' })
  t.strictSame(exports[1]?.clients, [{ kind: 'cn', name: 'y' }])
  t.notOk(exports[2] && 'clients' in exports[2], 'for everybody')

  const wrong: [Record<string, string[]>, RegExp][] = [
    [{ allow: ['d=cn:x'] }, /--allow "d=cn:x"/],
    [{ allow: ['a'] }, /--allow "a"/],
    [{ allow: ['a=host'] }, /not a client: "host"/],
  ]
  for (const [flags, message] of wrong) {
    const error = t.throws(() => settings(flags, file), { message })
    t.ok(error instanceof UsageError, 'a wrong command line')
  }
  const refuses = (allow: string[], at = listen): void => {
    const exports = [{ name: 'a', pipeline: 'ram:1M', allow }]
    t.throws(() => settings({}, { exports, listen: at }), { name: 'Fault', code: 'INVALID' })
  }
  refuses([])
  refuses(['host'])
  refuses(['cn:a'], ['unix:/run/nbd.sock'])
  t.end()
})

void t.test(
  'TLS lets NBD leave the machine, and credentials are part of where one listens',
  (t) => {
    const at = (listen: string): ServeSettings =>
      settings({ export: ['a=ram:1M'], listen: [listen] })
    t.match(at('tcp:0.0.0.0:1?tls-psk=/k').listen, [{ tls: { required: true } }])
    t.throws(() => at('tcp:0.0.0.0:1'), { code: 'NOT_PERMITTED' })
    t.throws(() => at('tcp:0.0.0.0:1?tls-psk=/k&tls=optional'), { code: 'NOT_PERMITTED' })
    t.throws(() => at('tcp:0.0.0.0:1?tls=require'), UsageError)
    t.end()
  },
)
