import { once } from 'node:events'
import { lstatSync, watch } from 'node:fs'
import { link, lstat, mkdir, readdir, rename, stat, symlink, writeFile } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'
import { setImmediate } from 'node:timers/promises'

import t from 'tap'

import { listenPrivately } from '../../net/private-socket.ts'
import { tempDirectory } from '../support/scope.ts'

function server(t: { teardown: (end: () => void) => void }): net.Server {
  const made = net.createServer((socket) => socket.destroy())
  t.teardown(() => made.close())
  return made
}

/** A socket file that nobody serves, as a killed server leaves it. */
async function leaveStaleSocket(at: string): Promise<void> {
  const server = net.createServer().listen(`${at}.live`)
  await once(server, 'listening')
  await link(`${at}.live`, at)
  await new Promise((resolve) => server.close(resolve))
}

void t.test('the socket is the owner’s alone, and its name goes with it', async (t) => {
  const folder = await tempDirectory(t)
  const at = path.join(folder, 's')
  const socket = await listenPrivately(server(t), at, 'test socket')
  t.equal((await stat(at)).mode & 0o777, 0o600)
  t.same(await readdir(folder), ['s'], 'nothing else is left')
  await socket.unlink()
  await t.rejects(stat(at), { code: 'ENOENT' })
})

void t.test('the socket never shows under its name with another mode', async (t) => {
  const folder = await tempDirectory(t)
  const at = path.join(folder, 's')
  // Bind makes a socket with the mode that umask leaves; with 0 everybody could connect.
  const umask = process.umask(0)
  t.teardown(() => {
    process.umask(umask)
  })
  const modes = new Set<number>()
  let listening = false
  const opening = listenPrivately(server(t), at, 'test socket').then(() => (listening = true))
  while (!listening) {
    const found = lstatSync(at, { throwIfNoEntry: false })
    if (found !== undefined) modes.add(found.mode & 0o777)
    await setImmediate()
  }
  await opening
  modes.add(lstatSync(at).mode & 0o777)
  t.same([...modes], [0o600])
})

void t.test('nothing is made outside the folder of the socket', async (t) => {
  const above = await tempDirectory(t)
  const folder = path.join(above, 'folder')
  await mkdir(folder)
  const seen = new Set<string | null>()
  const watcher = watch(above)
  watcher.on('change', (_, name) => seen.add(String(name)))
  const sentinelSeen = new Promise<void>((resolve) => {
    watcher.on('change', (_, name) => {
      if (name === 'sentinel') resolve()
    })
  })
  await listenPrivately(server(t), path.join(folder, 's'), 'test socket')
  await writeFile(path.join(above, 'sentinel'), '')
  await sentinelSeen
  watcher.close()
  t.same([...seen], ['sentinel'])
})

void t.test('a stale socket is replaced', async (t) => {
  const at = path.join(await tempDirectory(t), 's')
  await leaveStaleSocket(at)
  t.ok((await lstat(at)).isSocket())
  await listenPrivately(server(t), at, 'test socket')
  const client = net.connect(at)
  await once(client, 'connect')
  client.destroy()
})

void t.test('a live socket is refused and lives on', async (t) => {
  const at = path.join(await tempDirectory(t), 's')
  await listenPrivately(server(t), at, 'test socket')
  await t.rejects(listenPrivately(server(t), at, 'test socket'), {
    code: 'IN_USE',
    message: /another server listens on the test socket/,
    where: at,
    remedy: /stop it/,
  })
  const client = net.connect(at)
  await once(client, 'connect')
  client.destroy()
})

void t.test('two servers cannot both have one stale socket', async (t) => {
  const at = path.join(await tempDirectory(t), 's')
  await leaveStaleSocket(at)
  const both = [server(t), server(t)].map((one) => listenPrivately(one, at, 'test socket'))
  const results = await Promise.allSettled(both)
  const won = results.filter(({ status }) => status === 'fulfilled')
  t.equal(won.length, 1, results.map((result) => JSON.stringify(result)).join('\n'))
})

void t.test('what is not a socket is never removed', async (t) => {
  const folder = await tempDirectory(t)
  const file = path.join(folder, 'file')
  await writeFile(file, 'precious')
  const alias = path.join(folder, 'link')
  await symlink(file, alias)
  const inner = path.join(folder, 'folder')
  await mkdir(inner)
  for (const at of [file, alias, inner]) {
    const opened = listenPrivately(server(t), at, 'test socket')
    await t.rejects(opened, { code: 'IN_USE', message: /taken by something else/ })
  }
  t.equal((await stat(file)).size, 8)
})

void t.test('a socket that somebody else put in its place is left alone', async (t) => {
  const folder = await tempDirectory(t)
  const at = path.join(folder, 's')
  const mine = await listenPrivately(server(t), at, 'test socket')
  await listenPrivately(server(t), path.join(folder, 'other'), 'test socket')
  await rename(path.join(folder, 'other'), at)
  await mine.unlink()
  t.ok((await lstat(at)).isSocket())
})

void t.test('a path that cannot be used says so', async (t) => {
  const folder = await tempDirectory(t)
  const nowhere = path.join(folder, 'no', 'folder', 's')
  await t.rejects(listenPrivately(server(t), nowhere, 'test socket'), {
    code: 'IO',
    message: /cannot listen on the test socket/,
    where: nowhere,
  })
  const long = path.join(folder, 'x'.repeat(200))
  await t.rejects(listenPrivately(server(t), long, 'test socket'), {
    code: 'INVALID',
    message: /the path of the test socket is too long/,
  })
})
