/** Sockets that a service manager opened, as sd_listen_fds(3) has it. */

import { stat } from 'node:fs/promises'
import path from 'node:path'

import t from 'tap'

import { mustRun, startChild, type Child } from '../support/child.ts'
import { PROJECT, nbdUri } from '../support/colotap.ts'
import { freePorts, tempDirectory, type Scope } from '../support/scope.ts'

/** Binds the sockets named on its command line, passes them as systemd does, and becomes the program behind `--`. */
const MANAGER = `
import os, socket, sys
end = sys.argv.index("--")
names = []
for number, place in enumerate(sys.argv[1:end]):
    name, address = place.split("=", 1)
    if address.startswith("/"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
    else:
        host, port = address.rsplit(":", 1)
        listener = socket.socket(socket.AF_INET)
        listener.bind((host, int(port)))
    listener.listen()
    os.dup2(listener.fileno(), 100 + number)
    names.append(name)
for number in range(len(names)):
    os.dup2(100 + number, 3 + number)
    os.close(100 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=":".join(names))
os.execv(sys.argv[end + 1], sys.argv[end + 1:])
`

function activate(
  scope: Scope,
  directory: string,
  sockets: readonly string[],
  args: readonly string[],
): Child {
  return startChild(scope, '/usr/bin/python3', [
    ...['-c', MANAGER, ...sockets, '--', process.execPath],
    ...[path.join(PROJECT, 'bin', 'colotap'), 'serve', '--export', 'disk=ram:1M'],
    ...['--control', path.join(directory, 'control.sock')],
    ...['--state-dir', path.join(directory, 'state'), ...args],
  ])
}

void t.test('a service answers on the sockets that it was started with', async (t) => {
  const directory = await tempDirectory(t)
  const socket = path.join(directory, 'nbd.sock')
  const [port = 0] = await freePorts(1)
  const sockets = [`local=${socket}`, `wide=127.0.0.1:${port}`]
  const child = activate(t, directory, sockets, ['--listen', 'systemd'])
  await child.printed('ready')
  for (const uri of [nbdUri(socket, 'disk'), `nbd://127.0.0.1:${port}/disk`])
    t.match(await mustRun(t, 'nbdinfo', ['--size', uri]), /^1048576$/m)
  child.signal('SIGTERM')
  t.match(await child.end(), { code: 0 })
  t.ok((await stat(socket)).isSocket(), 'the socket is its owner’s to remove')
})

void t.test('a socket that nobody listens on is an error, not a trap', async (t) => {
  const directory = await tempDirectory(t)
  const sockets = [`a=${path.join(directory, 'a')}`, `b=${path.join(directory, 'b')}`]
  const child = activate(t, directory, sockets, ['--listen', 'systemd:a'])
  t.match(await child.end(), { code: 1, stderr: /systemd:b/ })
})

void t.test('a socket that others can reach needs --insecure like any other', async (t) => {
  const directory = await tempDirectory(t)
  const [port = 0] = await freePorts(1)
  const wide = [`wide=0.0.0.0:${port}`]
  const refused = activate(t, directory, wide, ['--listen', 'systemd'])
  t.match(await refused.end(), { code: 1, stderr: /without encryption/ })
  const allowed = activate(t, directory, wide, ['--listen', 'systemd', '--insecure'])
  await allowed.printed('ready')
  allowed.signal('SIGTERM')
  t.match(await allowed.end(), { code: 0 })
})
