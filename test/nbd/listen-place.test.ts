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

void t.test('what is no place is refused with advice', (t) => {
  const bad = [
    ...['', 'systemd:', 'System', 'unix:?mode=0660', 'unix:a?', 'unix:a?mode=', 'unix:a?mode=8'],
    ...['unix:a?mode=0888', 'unix:a?mode=4755', 'unix:a?mode=0660&x=1', 'unix:a?owner=root'],
    ...['tcp:[::1]:1?mode=0660'],
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
