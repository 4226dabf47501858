/** Hosts that hang instead of dying: the other side notices by silence, and what follows is what was promised. */

import { readFile } from 'node:fs/promises'
import t from 'tap'
import { NbdClient } from '../../nbd/client.ts'
import {
  groupState,
  linkLost,
  protection,
  startPair,
  type ReplicaHost,
} from '../support/replica-pair.ts'

const SIZE = 4 * 1024 * 1024
const OPTIONS = {
  mode: 'colo',
  disks: { disk: SIZE },
  settings: ['heartbeat=50', 'timeout=400'],
} as const

function attach(host: ReplicaHost): Promise<NbdClient> {
  return NbdClient.connect({
    address: { kind: 'unix', path: host.server.socket },
    exportName: 'disk',
  })
}

void t.test(
  'a secondary that hangs costs protection, not service; back again, it receives what changed',
  async (t) => {
    const { primary, secondary } = await startPair(t, OPTIONS)
    const client = await attach(primary)
    await client.write(Buffer.alloc(65536, 1), 0)
    await primary.qmp.execute('replication-checkpoint')
    secondary.server.child.signal('SIGSTOP')
    await client.write(Buffer.alloc(65536, 2), 0)
    await linkLost(primary.qmp)
    t.match((await groupState(primary.qmp)).reason, /silent for 400 ms/)
    await t.rejects(primary.qmp.execute('replication-checkpoint'), /no secondary/)
    for (let at = 0; at < SIZE; at += 262144) await client.write(Buffer.alloc(4096, 3), at)
    await client.trim(131072, 65536)
    secondary.server.child.signal('SIGCONT')
    await protection(primary.qmp, 'protected')
    const { checkpoint } = (await primary.qmp.execute('replication-checkpoint')) as {
      checkpoint: number
    }
    t.equal(
      (await groupState(secondary.qmp)).checkpoint,
      checkpoint,
      'both sides name the same checkpoint',
    )
    await client.disconnect()
    t.equal((await primary.server.stop()).code, 0)
    t.equal((await secondary.server.stop()).code, 0)
    const [one, other] = await Promise.all([
      readFile(primary.images['disk']!),
      readFile(secondary.images['disk']!),
    ])
    t.ok(one.equals(other), 'after a clean end both images are equal')
  },
)

void t.test(
  'a primary that hangs can be replaced; awake again, it is deposed and acknowledges nothing',
  async (t) => {
    const { primary, secondary } = await startPair(t, OPTIONS)
    const client = await attach(primary)
    await client.write(Buffer.alloc(4096, 1), 0)
    await primary.qmp.execute('replication-checkpoint')
    const { checkpoint } = await groupState(primary.qmp)
    await client.write(Buffer.alloc(4096, 2), 0)
    await t.rejects(
      secondary.qmp.execute('replication-promote'),
      /connected and alive/,
      'a living primary is not replaced',
    )
    primary.server.child.signal('SIGSTOP')
    await linkLost(secondary.qmp)
    await secondary.qmp.execute('replication-promote')
    await secondary.qmp.execute('replication-promote')
    t.match(
      await groupState(secondary.qmp),
      { role: 'active', term: 2, checkpoint },
      'promoting twice is promoting once',
    )
    const heir = await attach(secondary)
    const block = Buffer.alloc(4096)
    await heir.read(block, 0)
    t.ok(block.equals(Buffer.alloc(4096, 1)), 'it serves the last checkpoint')
    primary.server.child.signal('SIGCONT')
    await primary.qmp.event('REPLICATION_ERROR')
    t.match((await groupState(primary.qmp)).error, /deposed/)
    await t.rejects(client.write(Buffer.alloc(4096, 3), 0), { code: 'NOT_PERMITTED' })
    await client.read(block, 0)
    await Promise.all([heir.disconnect(), client.disconnect()])
    t.equal((await secondary.server.stop()).code, 0)
    t.equal((await primary.server.stop()).code, 0)
  },
)

void t.test('a forced promote beside a living primary deposes it at once', async (t) => {
  const { primary, secondary } = await startPair(t, OPTIONS)
  const client = await attach(primary)
  await secondary.qmp.execute('replication-promote', { force: true })
  await primary.qmp.event('REPLICATION_ERROR')
  await t.rejects(client.write(Buffer.alloc(4096, 3), 0), { code: 'NOT_PERMITTED' })
  await client.disconnect()
  t.equal((await primary.server.stop()).code, 0)
  t.equal((await secondary.server.stop()).code, 0)
})

void t.test('a toolstack drives a pair with libxl’s commands alone', async (t) => {
  const { primary, secondary } = await startPair(t, OPTIONS)
  await secondary.qmp.execute('xen-set-replication', { enable: true, primary: false })
  await primary.qmp.execute('xen-set-replication', { enable: true, primary: true })
  await t.rejects(
    primary.qmp.execute('xen-set-replication', { enable: true, primary: false }),
    'the role has to fit',
  )
  const client = await attach(primary)
  // The first copy has ended with a checkpoint of its own.
  const { checkpoint: first } = await groupState(secondary.qmp)
  for (let round = 1; round <= 3; round += 1) {
    await client.write(Buffer.alloc(4096, round), 0)
    t.same(await primary.qmp.execute('query-xen-replication-status'), { error: false })
    await Promise.all([
      secondary.qmp.execute('xen-colo-do-checkpoint'),
      primary.qmp.execute('xen-colo-do-checkpoint'),
    ])
    t.equal((await groupState(secondary.qmp)).checkpoint, first + round)
  }
  await client.write(Buffer.alloc(4096, 9), 0)
  primary.server.child.signal('SIGKILL')
  await linkLost(secondary.qmp)
  await t.rejects(
    secondary.qmp.execute('xen-colo-do-checkpoint'),
    'a checkpoint that cannot come is a failed command',
  )
  await secondary.qmp.execute('xen-set-replication', {
    enable: false,
    primary: false,
    failover: true,
  })
  const heir = await attach(secondary)
  const block = Buffer.alloc(4096)
  await heir.read(block, 0)
  t.ok(block.equals(Buffer.alloc(4096, 3)))
  await heir.disconnect()
  client.abandon()
})
