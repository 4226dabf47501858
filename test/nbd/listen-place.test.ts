import { resolve } from 'node:path'

import t from 'tap'

import { formatListenPlace, parseListenSpec } from '../../nbd/listen-place.ts'

void t.test('a place to listen is an address, or sockets of systemd', (t) => {
  const cases = [
    ['unix:/run/nbd.sock', { kind: 'unix', path: '/run/nbd.sock' }],
    ['unix:/run/nbd.sock?mode=0660', { kind: 'unix', path: '/run/nbd.sock', mode: 0o660 }],
    ['unix:nbd.sock?mode=666', { kind: 'unix', path: 'nbd.sock', mode: 0o666 }],
    ['tcp:[::1]:10809', { kind: 'tcp', host: '::1', port: 10809 }],
    ['systemd', { kind: 'systemd', name: undefined }],
    ['systemd:nbd', { kind: 'systemd', name: 'nbd' }],
  ] as const
  for (const [text, spec] of cases) t.strictSame(parseListenSpec(text), spec, text)
  t.end()
})

void t.test('a place may demand TLS, offer it, or ask for no certificate', (t) => {
  const x509 = { kind: 'x509', directory: '/etc/tls' } as const
  const psk = { kind: 'psk', file: '/etc/a&b%', user: undefined } as const
  const cases = [
    ['tcp:h:1?tls-creds=/etc/tls', x509, true, false],
    ['tcp:h:1?tls-creds=/etc/tls&tls=require&tls-verify=on', x509, true, false],
    ['tcp:h:1?tls=optional&tls-creds=/etc/tls', x509, false, false],
    ['tcp:h:1?tls-creds=/etc/tls&tls-verify=off', x509, true, true],
    ['tcp:h:1?tls-psk=/etc/a%26b%25', psk, true, false],
  ] as const
  for (const [text, source, required, anybody] of cases) {
    const tls = { source, required, anybody }
    t.strictSame(parseListenSpec(text), { kind: 'tcp', host: 'h', port: 1, tls }, text)
  }
  const { tls } = parseListenSpec('systemd:nbd?tls-psk=keys')
  t.same(tls?.source, { kind: 'psk', file: resolve('keys'), user: undefined })
  t.match(parseListenSpec('unix:/s?mode=0660&tls-psk=/k'), { mode: 0o660, tls: { required: true } })
  t.end()
})

void t.test('what is no place is refused with advice', (t) => {
  const bad = [
    ...['', 'systemd:', 'System', 'unix:?mode=0660', 'unix:a?', 'unix:a?mode=', 'unix:a?mode=8'],
    ...['unix:a?mode=0888', 'unix:a?mode=4755', 'unix:a?mode=0660&x=1', 'unix:a?owner=root'],
    ...['tcp:[::1]:1?mode=0660', 'systemd?mode=0660', 'unix:a?mode=0660&mode=0660', 'unix:a?mode'],
    ...['unix:a?tls-creds=', 'unix:a?tls-creds=/x&tls-psk=/y', 'unix:a?tls=require'],
    ...['unix:a?tls-psk=/x&tls=off', 'unix:a?tls-psk=/x&tls-verify=off', 'unix:a?tls-verify=off'],
    ...[
      'unix:a?tls-creds=/x&tls-verify=no',
      'unix:a?tls-psk=%',
      'unix:a?tls-psk=/x&',
      'unix:a?TLS=require',
    ],
  ]
  for (const text of bad)
    t.throws(() => parseListenSpec(text), { code: 'INVALID', remedy: /./ }, `"${text}"`)
  t.end()
})

void t.test('a place is named in messages', (t) => {
  t.equal(formatListenPlace({ kind: 'inherited', fd: 3, name: 'nbd' }), 'systemd:nbd')
  t.equal(formatListenPlace({ kind: 'unix', path: '/s', mode: 0o660 }), 'unix:/s')
  t.equal(formatListenPlace({ kind: 'tcp', host: '::', port: 1 }), 'tcp:[::]:1')
  t.end()
})
