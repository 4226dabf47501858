import { once } from 'node:events'
import { link, lstat, stat, symlink, writeFile } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'

import t from 'tap'

import { openListener } from '../../nbd/listener.ts'
import { temporaryFolder } from './harness.ts'

const ignore = (): void => undefined

/** A socket file that nobody serves, as a killed server leaves it. */
async function leaveStaleSocket(at: string): Promise<void> {
  const server = net.createServer().listen(`${at}.live`)
  await once(server, 'listening')
  await link(`${at}.live`, at)
  await new Promise((resolve) => server.close(resolve))
}

void t.test('the socket is the owner’s alone, and goes with the listener', async (t) => {
  const at = path.join(await temporaryFolder(t), 's')
  const listener = await openListener({ kind: 'unix', path: at }, ignore, ignore)
  t.equal((await stat(at)).mode & 0o777, 0o600)
  await listener.close()
  await t.rejects(stat(at), { code: 'ENOENT' })
})

void t.test('a stale socket is replaced', async (t) => {
  const at = path.join(await temporaryFolder(t), 's')
  await leaveStaleSocket(at)
  t.ok((await lstat(at)).isSocket())
  const listener = await openListener({ kind: 'unix', path: at }, ignore, ignore)
  await listener.close()
})

void t.test('a live socket is refused and lives on', async (t) => {
  const at = path.join(await temporaryFolder(t), 's')
  const accepted: net.Socket[] = []
  const listener = await openListener(
    { kind: 'unix', path: at },
    (socket) => accepted.push(socket),
    ignore,
  )
  await t.rejects(openListener({ kind: 'unix', path: at }, ignore, ignore), {
    code: 'IN_USE',
    where: `unix:${at}`,
    remedy: /stop that server/,
  })
  const client = net.connect(at)
  await once(client, 'connect')
  client.destroy()
  for (const socket of accepted) socket.destroy()
  await listener.close()
})

void t.test('what is not a socket is never removed', async (t) => {
  const folder = await temporaryFolder(t)
  const file = path.join(folder, 'file')
  await writeFile(file, 'precious')
  const alias = path.join(folder, 'link')
  await symlink(file, alias)
  for (const at of [file, alias, folder]) {
    const opened = openListener({ kind: 'unix', path: at }, ignore, ignore)
    await t.rejects(opened, { code: 'IN_USE' })
  }
  t.equal((await stat(file)).size, 8)
})

void t.test('an address that cannot be bound says so', async (t) => {
  const nowhere = { kind: 'unix', path: '/nonexistent-folder/s' } as const
  await t.rejects(openListener(nowhere, ignore, ignore), { name: 'Fault', where: /nonexistent/ })
  const foreign = { kind: 'tcp', host: '192.0.2.1', port: 1 } as const
  await t.rejects(openListener(foreign, ignore, ignore), { name: 'Fault', where: /192\.0\.2\.1/ })
})
