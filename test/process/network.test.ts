/** A pair whose hosts are joined by a network that fails: both ways, one way, and by being slow. */

import { readFile } from 'node:fs/promises'
import path from 'node:path'
import t, { type Test } from 'tap'
import { NbdClient } from '../../nbd/client.ts'
import { writePskFile } from '../support/certificates.ts'
import { layNetwork, type NetworkHost } from '../support/network.ts'
import {
  groupState,
  linkLost,
  protection,
  startPair,
  type ReplicaHost,
} from '../support/replica-pair.ts'
import { tempDirectory } from '../support/scope.ts'

const SIZE = 8 * 1024 * 1024
const BLOCK = 4096

interface Wired {
  readonly primary: ReplicaHost
  readonly secondary: ReplicaHost
  readonly network: Readonly<Record<'primary' | 'secondary', NetworkHost>>
  readonly guest: NbdClient
}

/** How soon a side that hears nothing takes the other one for dead. */
const SOON = ['heartbeat=50', 'timeout=400']

async function wired(t: Test, settings: readonly string[]): Promise<Wired> {
  const network = await layNetwork(t)
  const keys = await writePskFile(path.join(await tempDirectory(t), 'keys.psk'))
  const pair = await startPair(t, {
    mode: 'remus',
    disks: { disk: SIZE },
    settings: [`tls-psk=${keys}`, ...settings],
    places: network,
  })
  return { ...pair, network, guest: await attach(pair.primary) }
}

function attach(host: ReplicaHost): Promise<NbdClient> {
  return NbdClient.connect({
    address: { kind: 'unix', path: host.server.socket },
    exportName: 'disk',
  })
}

async function fill(guest: NbdClient, value: number, step: number): Promise<void> {
  for (let at = 0; at < SIZE; at += step) await guest.write(Buffer.alloc(BLOCK, value), at)
}

async function endsEqual(t: Test, { primary, secondary, guest }: Wired): Promise<void> {
  await primary.qmp.execute('replication-checkpoint')
  await guest.disconnect()
  t.equal((await primary.server.stop()).code, 0)
  t.equal((await secondary.server.stop()).code, 0)
  const [one, other] = await Promise.all([
    readFile(primary.images['disk']!),
    readFile(secondary.images['disk']!),
  ])
  t.ok(one.equals(other), 'after a clean end both images are equal')
}

const CUTS: Readonly<
  Record<string, { cut: (wired: Wired) => Promise<void>; heal: (wired: Wired) => Promise<void> }>
> = {
  'the cable is out': {
    cut: ({ network }) => network.primary.plug(false),
    heal: ({ network }) => network.primary.plug(true),
  },
  'nothing reaches the secondary': {
    cut: ({ network }) => network.secondary.deafen(),
    heal: ({ network }) => network.secondary.hear(),
  },
  'nothing reaches the primary': {
    cut: ({ network }) => network.primary.deafen(),
    heal: ({ network }) => network.primary.hear(),
  },
}

for (const [what, { cut, heal }] of Object.entries(CUTS)) {
  void t.test(`${what}: the guest goes on, and what it changed follows`, async (t) => {
    const pair = await wired(t, SOON)
    const { primary, secondary, guest } = pair
    await fill(guest, 1, 65536)
    await primary.qmp.execute('replication-checkpoint')
    await cut(pair)
    await fill(guest, 2, 131072)
    await linkLost(primary.qmp)
    await linkLost(secondary.qmp)
    await t.rejects(primary.qmp.execute('replication-checkpoint'), /no secondary/)
    await fill(guest, 3, 262144)
    await heal(pair)
    await protection(primary.qmp, 'protected')
    await endsEqual(t, pair)
  })

  void t.test(`${what}: a promoted secondary leads, and the old primary is deposed`, async (t) => {
    const pair = await wired(t, SOON)
    const { primary, secondary, guest } = pair
    await fill(guest, 1, 65536)
    await primary.qmp.execute('replication-checkpoint')
    await cut(pair)
    await linkLost(secondary.qmp)
    await secondary.qmp.execute('replication-promote')
    const heir = await attach(secondary)
    const block = Buffer.alloc(BLOCK)
    await heir.read(block, 65536)
    t.ok(block.equals(Buffer.alloc(BLOCK, 1)), 'it serves the last checkpoint')
    await heir.write(Buffer.alloc(BLOCK, 5), 0)
    await heal(pair)
    await primary.qmp.event('REPLICATION_ERROR')
    await t.rejects(guest.write(Buffer.alloc(BLOCK, 9), 0), { code: 'NOT_PERMITTED' })
    await guest.disconnect()
    await primary.qmp.execute('replication-demote')
    await protection(secondary.qmp, 'protected')
    await endsEqual(t, { ...pair, primary: secondary, secondary: primary, guest: heir })
  })

  void t.test(`${what}, and the primary freezes: each write completes once, later`, async (t) => {
    const pair = await wired(t, [...SOON, 'on-link-loss=freeze'])
    const { primary, secondary, guest } = pair
    await guest.write(Buffer.alloc(BLOCK, 1), 0)
    await cut(pair)
    await linkLost(primary.qmp)
    await linkLost(secondary.qmp)
    t.equal((await groupState(primary.qmp)).protection, 'frozen')
    let completed = 0
    const waiting = [1, 2, 3].map((block) =>
      guest.write(Buffer.alloc(BLOCK, 7), block * BLOCK).then(() => (completed += 1)),
    )
    const block = Buffer.alloc(BLOCK)
    await guest.read(block, 0)
    t.ok(block.equals(Buffer.alloc(BLOCK, 1)), 'reads are served')
    t.equal(completed, 0)
    await heal(pair)
    await Promise.all(waiting)
    await protection(primary.qmp, 'protected')
    await endsEqual(t, pair)
  })
}

void t.test(
  'a slow network slows the guest down, and costs neither data nor protection',
  async (t) => {
    const pair = await wired(t, ['heartbeat=100', 'timeout=3000'])
    const { primary, secondary, network, guest } = pair
    await network.primary.slow(40)
    const pieces = Array.from({ length: 8 }, (_, index) => index)
    await Promise.all(
      pieces.map((index) => guest.write(Buffer.alloc(1 << 20, index + 1), index << 20)),
    )
    await primary.qmp.execute('replication-checkpoint', { timeoutMs: 60_000 })
    for (const { qmp } of [primary, secondary])
      t.notOk(
        qmp.events.some(({ event, data }) => event === 'REPLICATION_LINK' && !isUp(data)),
        'the link never counted as lost',
      )
    await endsEqual(t, pair)
  },
)

function isUp(data: unknown): boolean {
  return (data as { up: boolean }).up
}
