import t from 'tap'

import { listenPlaces, refuseExposure } from '../../cli/listen-settings.ts'
import { inheritedSockets } from '../../cli/systemd.ts'
import type { InheritedSocket, ListenSpec } from '../../nbd/listen-place.ts'

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
