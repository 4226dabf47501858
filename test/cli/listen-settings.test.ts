import t from 'tap'

import { listenPlaces, refuseExposure, refuseUnreachable } from '../../cli/listen-settings.ts'
import { inheritedSockets } from '../../cli/systemd.ts'
import { parseClientRule } from '../../nbd/access.ts'
import {
  parseListenSpec,
  type InheritedSocket,
  type ListenPlace,
  type ListenSpec,
} from '../../nbd/listen-place.ts'

const UNIX: ListenSpec = { kind: 'unix', path: '/run/nbd.sock' }
const EVERY: ListenSpec = { kind: 'systemd', name: undefined }
const named = (name: string): ListenSpec => ({ kind: 'systemd', name })
const socket = (fd: number, name: string): InheritedSocket => ({ kind: 'inherited', fd, name })
const A = socket(3, 'a')
const B = socket(4, 'b')
const B2 = socket(5, 'b')

void t.test('sockets of systemd are this process’s, with their names', (t) => {
  const env = { LISTEN_PID: '77', LISTEN_FDS: '2', LISTEN_FDNAMES: 'a:b' }
  t.strictSame(inheritedSockets(env, 77), [A, B])
  t.strictSame(inheritedSockets(env, 78), [], 'they were passed to another process')
  t.strictSame(inheritedSockets({}, 77), [])
  t.strictSame(inheritedSockets({ LISTEN_PID: '77', LISTEN_FDS: '1' }, 77), [socket(3, 'unknown')])
  for (const count of ['', 'x', '-1', '1e3'])
    t.throws(() => inheritedSockets({ ...env, LISTEN_FDS: count }, 77), { code: 'INVALID' })
  t.end()
})

void t.test('sockets of systemd are listened on where they are asked for', (t) => {
  t.strictSame(listenPlaces([UNIX], []), [UNIX])
  t.strictSame(listenPlaces([UNIX, EVERY], [A, B]), [UNIX, A, B])
  t.strictSame(listenPlaces([named('b'), named('a')], [A, B, B2]), [B, B2, A])
  t.strictSame(listenPlaces([EVERY, named('b')], [A, B]), [A, B], 'each once')
  t.end()
})

void t.test('a socket that is missing, or that nobody would listen on, is an error', (t) => {
  t.throws(() => listenPlaces([EVERY], []), { code: 'NOT_FOUND', message: /socket unit/ })
  t.throws(() => listenPlaces([named('c')], [A, B]), { code: 'NOT_FOUND', message: /"c".*a, b/ })
  t.throws(() => listenPlaces([UNIX], [A]), { code: 'INVALID', message: /systemd:a/ })
  t.throws(() => listenPlaces([named('a')], [A, B]), { code: 'INVALID', message: /systemd:b/ })
  t.end()
})

void t.test('only what this machine alone can reach is served in the clear', (t) => {
  for (const host of ['127.0.0.1', '::1', 'localhost'])
    refuseExposure({ kind: 'tcp', host, port: 10809 })
  refuseExposure({ kind: 'unix', path: '/s', mode: 0o666 })
  refuseExposure(A)
  for (const host of ['0.0.0.0', '::', '192.0.2.7', 'name'])
    t.throws(() => refuseExposure({ kind: 'tcp', host, port: 1 }), { code: 'NOT_PERMITTED' })
  t.end()
})

void t.test('sockets of systemd are listened on with the TLS that was said', (t) => {
  const spec = parseListenSpec('systemd:b?tls-psk=/k')
  const { tls } = spec
  t.ok(tls)
  t.strictSame(listenPlaces([named('a'), spec], [A, B]), [A, { ...B, tls }])
  t.strictSame(listenPlaces([spec, spec], [B]), [{ ...B, tls }], 'the same twice')
  for (const specs of [
    [EVERY, spec],
    [spec, EVERY],
  ])
    t.throws(() => listenPlaces(specs, [B]), { code: 'INVALID', message: /with and without TLS/ })
  t.end()
})

function place(text: string): ListenPlace {
  const spec = parseListenSpec(text)
  if (spec.kind === 'systemd') throw new Error('no address')
  return spec
}

void t.test('beyond this machine everything is encrypted, and everybody proves who he is', (t) => {
  for (const text of ['tcp:0.0.0.0:1?tls-creds=/x', 'tcp:[::]:1?tls-psk=/x&tls=require'])
    refuseExposure(place(text))
  for (const text of [
    'tcp:127.0.0.1:1?tls-psk=/x&tls=optional',
    'unix:/s?tls-creds=/x&tls-verify=off',
  ])
    refuseExposure(place(text))
  const refused: [string, RegExp][] = [
    ['tcp:name:1', /without encryption.*--insecure/],
    ['tcp:0.0.0.0:1?tls-psk=/x&tls=optional', /without encryption.*tls=optional/],
    ['tcp:[::]:1?tls-creds=/x&tls-verify=off', /anybody.*tls-verify=off/],
  ]
  for (const [text, message] of refused)
    t.throws(() => refuseExposure(place(text)), { code: 'NOT_PERMITTED', message })
  t.end()
})

void t.test('an export for clients that could prove themselves nowhere is refused', (t) => {
  const check = (client: string, ...places: string[]): void =>
    refuseUnreachable('disk', [parseClientRule(client)], places.map(place))
  check('cn:a', 'unix:/s', 'unix:/t?tls-creds=/x&tls=optional')
  check('dn:CN=a', 'unix:/t?tls-creds=/x')
  check('psk:a', 'unix:/s?tls-creds=/x', 'unix:/t?tls-psk=/x')
  const refused = [
    ['cn:a', 'unix:/s'],
    ['cn:a', 'unix:/s?tls-psk=/x'],
    ['dn:CN=a', 'unix:/s?tls-creds=/x&tls-verify=off'],
    ['psk:a', 'unix:/s?tls-creds=/x'],
  ] as const
  for (const [client, at] of refused)
    t.throws(() => check(client, at), { code: 'INVALID', message: /export "disk"/ })
  t.end()
})
