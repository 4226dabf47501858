import { stat } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'

import t from 'tap'

import { openListener } from '../../nbd/listener.ts'
import { temporaryFolder } from './harness.ts'

const ignore = (): void => undefined
const hangUp = (socket: Socket): void => void socket.destroy()

void t.test('a unix socket is the owner’s alone, and goes with the listener', async (t) => {
  const at = path.join(await temporaryFolder(t), 's')
  const listener = await openListener({ kind: 'unix', path: at }, hangUp, ignore)
  t.same(listener.address, { kind: 'unix', path: at })
  t.equal((await stat(at)).mode & 0o777, 0o600)
  await t.rejects(openListener({ kind: 'unix', path: at }, hangUp, ignore), { code: 'IN_USE' })
  await listener.close()
  await t.rejects(stat(at), { code: 'ENOENT' })
})

void t.test('a TCP listener names the port that it got', async (t) => {
  const any = { kind: 'tcp', host: '127.0.0.1', port: 0 } as const
  const listener = await openListener(any, hangUp, ignore)
  t.teardown(() => listener.close())
  t.match(listener.address, { kind: 'tcp', host: '127.0.0.1' })
  t.not((listener.address as { port: number }).port, 0)
  await t.rejects(openListener(listener.address, hangUp, ignore), { code: 'IN_USE' })
})
