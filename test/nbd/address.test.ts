import t from 'tap'

import { Fault } from '../../core/fault.ts'
import { formatListenAddress, parseListenAddress } from '../../nbd/address.ts'

void t.test('an address reads and prints the same', (t) => {
  const cases = [
    ['unix:/run/nbd.sock', { kind: 'unix', path: '/run/nbd.sock' }],
    ['unix:relative:path', { kind: 'unix', path: 'relative:path' }],
    ['tcp:127.0.0.1:10809', { kind: 'tcp', host: '127.0.0.1', port: 10809 }],
    ['tcp:localhost:0', { kind: 'tcp', host: 'localhost', port: 0 }],
    ['tcp:[::1]:10809', { kind: 'tcp', host: '::1', port: 10809 }],
  ] as const
  for (const [text, address] of cases) {
    t.strictSame(parseListenAddress(text), address, text)
    t.equal(formatListenAddress(address), text)
  }
  t.end()
})

void t.test('what is no address is refused with advice', (t) => {
  const bad = [
    '',
    'unix:',
    `unix:${'x'.repeat(108)}`,
    'unix:a\0b',
    '/run/nbd.sock',
    'tcp:10809',
    'tcp::10809',
    'tcp:host:',
    'tcp:host:65536',
    'tcp:host:-1',
    'tcp:::1:10809',
    'tcp:[::1]',
    'udp:host:1',
  ]
  for (const text of bad) {
    try {
      parseListenAddress(text)
      t.fail(`accepted ${text}`)
    } catch (error) {
      t.ok(error instanceof Fault && error.code === 'INVALID' && error.remedy !== undefined, text)
    }
  }
  t.end()
})
