import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { parseConfig, readConfig } from '../../cli/config-file.ts'

void t.test('a file says what the flags say', (t) => {
  const text = `
    listen = ["unix:/run/colotap/nbd.sock", "tcp:127.0.0.1:10809"]
    control = "/run/colotap/control.sock"
    blktap2-dir = "/var/run/tap"
    log-level = "warn"
    read-only = false
    insecure = true

    [[export]]
    name = "disk0"
    pipeline = "colo:127.0.0.1:9000?role=primary&group=vm1|aio:/srv/disk0.img"
    description = "the system"

    [[export]]
    name = "disk1"
    pipeline = "ram:1M"
    read-only = true
    allow = ["cn:host-a", "psk:vm1"]
  `
  t.strictSame(parseConfig(text, 'colotap.toml'), {
    listen: ['unix:/run/colotap/nbd.sock', 'tcp:127.0.0.1:10809'],
    control: '/run/colotap/control.sock',
    blktap2Dir: '/var/run/tap',
    logLevel: 'warn',
    readOnly: false,
    insecure: true,
    exports: [
      {
        name: 'disk0',
        pipeline: 'colo:127.0.0.1:9000?role=primary&group=vm1|aio:/srv/disk0.img',
        description: 'the system',
      },
      { name: 'disk1', pipeline: 'ram:1M', readOnly: true, allow: ['cn:host-a', 'psk:vm1'] },
    ],
  })
  t.strictSame(parseConfig('', 'empty.toml'), { exports: [], listen: [] })
  t.end()
})

void t.test('what is not understood is refused with its place', (t) => {
  const cases: [string, RegExp][] = [
    ['lisen = []', /unknown key "lisen": f.toml .*did you mean "listen"/],
    ['http = "/x"', /unknown key "http": f.toml .*known: listen, control/],
    ['state-dir = 1', /state-dir must be a string/],
    ['toString = 1', /unknown key "toString"/],
    ['listen = "unix:/x"', /listen must be an array: f.toml/],
    ['listen = [1]', /every entry of listen must be a string/],
    ['control = 1', /control must be a string/],
    ['insecure = "yes"', /insecure must be a boolean/],
    ['log-level = true', /log-level must be a string/],
    ['export = "disk"', /export must be an array/],
    ['export = ["disk"]', /must be a table: f.toml, export 1/],
    ['[export]\nname = "a"', /export must be an array/],
    ['[[export]]\nname = "a"', /pipeline is missing: f.toml, export 1/],
    ['[[export]]\npipeline = "ram:1M"', /name is missing: f.toml, export 1/],
    [
      '[[export]]\nname = "a"\npipeline = "ram:1M"\n[[export]]\nnmae = "b"',
      /unknown key "nmae": f.toml, export 2 .*did you mean "name"/,
    ],
    ['[[export]]\nname = "a"\npipeline = ["ram:1M"]', /pipeline must be a string/],
    [
      '[[export]]\nname = "a"\npipeline = "ram:1M"\nallow = [1]',
      /every entry of allow must be a string: f.toml, export 1/,
    ],
    ['[[export]]\nname = "a"\npipeline = "ram:1M"\nallow = "cn:a"', /allow must be an array/],
    ['control = "a"\nlisten = [', /f\.toml:2:\d+/],
    ['control = "a"\ncontrol = "b"', /f\.toml:2:\d+/],
  ]
  for (const [text, message] of cases) {
    t.throws(() => parseConfig(text, 'f.toml'), { name: 'Fault', message }, text)
  }
  t.end()
})

void t.test('a file that cannot be read is named', async (t) => {
  const folder = t.testdir()
  const missing = join(folder, 'missing.toml')
  await t.rejects(readConfig(missing), { code: 'NOT_FOUND', message: /missing\.toml/ })
  const file = join(folder, 'colotap.toml')
  writeFileSync(file, 'read-only = true\n')
  t.strictSame(await readConfig(file), { exports: [], listen: [], readOnly: true })
})
