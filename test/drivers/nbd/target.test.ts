import t from 'tap'

import { parseTarget } from '../../../drivers/nbd/target.ts'
import { parsePipeline } from '../../../drivers/pipeline.ts'
import { DRIVERS } from '../../../drivers/registry.ts'

const target = (text: string): unknown => {
  const [stage] = parsePipeline(text, DRIVERS)
  if (stage === undefined) throw new Error('a pipeline has a stage')
  return parseTarget(stage)
}

for (const [text, address, exportName] of [
  ['nbd:unix:/run/nbd.sock?export=vm1', { kind: 'unix', path: '/run/nbd.sock' }, 'vm1'],
  ['nbd:unix:/run/nbd.sock', { kind: 'unix', path: '/run/nbd.sock' }, ''],
  ['nbd:unix:/run/a%3Fb', { kind: 'unix', path: '/run/a?b' }, ''],
  ['nbd:storage', { kind: 'tcp', host: 'storage', port: 10809 }, ''],
  ['nbd:192.0.2.7:9000?export=a%26b', { kind: 'tcp', host: '192.0.2.7', port: 9000 }, 'a&b'],
  ['nbd:[::1]?export=x', { kind: 'tcp', host: '::1', port: 10809 }, 'x'],
  ['nbd:[2001:db8::7]:9000', { kind: 'tcp', host: '2001:db8::7', port: 9000 }, ''],
  ['nbd://storage/vm1/root', { kind: 'tcp', host: 'storage', port: 10809 }, 'vm1/root'],
  ['nbd://[::1]:9000/', { kind: 'tcp', host: '::1', port: 9000 }, ''],
  ['nbd://storage?export=vm1', { kind: 'tcp', host: 'storage', port: 10809 }, 'vm1'],
] as const) {
  void t.test(`${text} means an export of a server`, (t) => {
    t.strictSame(target(text), { address, exportName })
    t.end()
  })
}

for (const text of [
  'nbd:unix:',
  `nbd:unix:/${'x'.repeat(200)}`,
  'nbd:storage:99999',
  'nbd:sto rage',
  'nbd:2001:db8::7',
  'nbd:///export',
  'nbd://storage/a?export=b',
]) {
  void t.test(`${text.slice(0, 40)} is refused`, (t) => {
    t.throws(() => target(text), { name: 'Fault', code: 'INVALID' })
    t.end()
  })
}
