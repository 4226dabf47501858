import fc from 'fast-check'
import t from 'tap'

import { formatHostPort, isLoopback, parseHostPort } from '../../core/address.ts'
import { Fault } from '../../core/fault.ts'

void t.test('addresses are read as people write them', (t) => {
  const cases: [string, string, number][] = [
    ['192.0.2.7:9000', '192.0.2.7', 9000],
    ['[::1]:9000', '::1', 9000],
    ['[fe80::1%eth0]:1', 'fe80::1%eth0', 1],
    ['localhost:0', 'localhost', 0],
    ['storage-1.example.org:65535', 'storage-1.example.org', 65535],
  ]
  for (const [text, host, port] of cases) t.same(parseHostPort(text), { host, port }, text)
  t.end()
})

void t.test('what is not HOST:PORT is refused with the text and the form that is wanted', (t) => {
  const wrong = [
    '',
    ':9000',
    'host',
    'host:',
    'host:x',
    'host:70000',
    'host:-1',
    'host:9000 ',
    '::1:9000',
    '[::1]',
    '[::1]:',
    '[host]:1',
    '[]:1',
    'a b:1',
    '1.2.3:1',
    '1.2.3.400:1',
    'host:9000:1',
    '-host:1',
  ]
  for (const text of wrong) {
    t.throws(() => parseHostPort(text), { name: 'Fault', code: 'INVALID' }, JSON.stringify(text))
    try {
      parseHostPort(text)
    } catch (error) {
      t.ok(
        error instanceof Fault &&
          error.message.includes(`"${text}"`) &&
          error.message.includes('HOST:PORT'),
      )
    }
  }
  t.end()
})

void t.test('only addresses that cannot leave the machine are loopback', (t) => {
  for (const host of [
    '127.0.0.1',
    '127.8.9.1',
    '::1',
    '0:0:0:0:0:0:0:1',
    '::ffff:127.0.0.1',
    'localhost',
    'LocalHost',
  ])
    t.ok(isLoopback(host), host)
  for (const host of [
    '0.0.0.0',
    '::',
    '10.0.0.1',
    '128.0.0.1',
    '::ffff:10.0.0.1',
    '::2',
    'fe80::1%eth0',
    'example.org',
    'localhost.example.org',
    '127.evil.org',
    '',
  ])
    t.notOk(isLoopback(host), host)
  t.end()
})

void t.test('every address survives being written and read again', (t) => {
  fc.assert(
    fc.property(
      fc.oneof(fc.ipV4(), fc.ipV6()),
      fc.integer({ min: 0, max: 65535 }),
      (host, port) => {
        const again = parseHostPort(formatHostPort({ host, port }))
        return again.host === host && again.port === port
      },
    ),
  )
  t.end()
})
