/**
 * Pairs whose sides keep their disks in images of different formats: what one side writes, zeroes and trims, the other
 * one has after a checkpoint, whoever dies, and whoever leads.
 *
 * REQUESTS and REQUESTS_SEED choose how many random requests and which ones.
 */

import { stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import t, { type Test } from 'tap'
import { qcowFormat } from '../../drivers/qcow/qcow-format.ts'
import { vhdFormat } from '../../drivers/vhd/vhd-format.ts'
import { NbdClient } from '../../nbd/client.ts'
import { serveColotap } from '../support/colotap.ts'
import { difference } from '../support/images.ts'
import { runRandomRequests } from '../support/random-requests.ts'
import { imageContent, imageObjection, type PairFormats } from '../support/replica-images.ts'
import {
  groupState,
  linkLost,
  protection,
  restartHost,
  startPair,
  type ReplicaHost,
} from '../support/replica-pair.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'

const MIB = 1024 * 1024
const SIZE = 9 * MIB
const REQUESTS = Math.min(1000, Number(process.env['REQUESTS'] ?? 1000))
const SEED = Number(process.env['REQUESTS_SEED'] ?? Date.now() % 1_000_000)

interface Mixture {
  readonly mode: 'colo' | 'remus'
  readonly formats: PairFormats
}

const MIXTURES: readonly Mixture[] = [
  { mode: 'colo', formats: { primary: 'qcow', secondary: 'vhd' } },
  { mode: 'remus', formats: { primary: 'vhd', secondary: 'qcow' } },
  { mode: 'remus', formats: { primary: 'qcow', secondary: 'qcow' } },
  { mode: 'colo', formats: { primary: 'vhd', secondary: 'vhd' } },
  { mode: 'colo', formats: { primary: 'aio', secondary: 'qcow' } },
  { mode: 'remus', formats: { primary: 'vhd', secondary: 'aio' } },
]

async function diskOf({ server }: ReplicaHost): Promise<NbdClient> {
  const address = { kind: 'unix', path: server.socket } as const
  return NbdClient.connect({ address, exportName: 'disk' })
}

async function contentOf(client: NbdClient): Promise<Buffer> {
  const content = Buffer.alloc(SIZE)
  for (let at = 0; at < SIZE; at += MIB) await client.read(content.subarray(at, at + MIB), at)
  return content
}

async function shows(t: Test, host: ReplicaHost, expected: Buffer, claim: string): Promise<void> {
  const client = await diskOf(host)
  t.equal(difference(await contentOf(client), expected), undefined, claim)
  await client.disconnect()
}

/** Ends both sides in order; their images must be sound and hold the same disk, as QEMU reads them. */
async function endsEqual(
  t: Test,
  primary: ReplicaHost,
  secondary: ReplicaHost,
  expected: Buffer,
): Promise<void> {
  await primary.qmp.execute('replication-checkpoint')
  for (const host of [primary, secondary]) {
    t.match(await host.server.stop(), { code: 0 })
    const image = host.images['disk']!
    t.equal(await imageObjection(image, host.format), undefined, `${host.format}: sound`)
    const content = await imageContent(t, image, host.format)
    t.equal(difference(content, expected), undefined, `${host.format}: the disk`)
  }
}

for (const [index, { mode, formats }] of MIXTURES.entries()) {
  const { primary: ours, secondary: theirs } = formats
  const seed = SEED + index
  void t.test(`${mode} from ${ours} to ${theirs}: failover and back (seed ${seed})`, async (t) => {
    const settings = ['heartbeat=50', 'timeout=400']
    const pair = await startPair(t, { mode, formats, settings, disks: { disk: SIZE } })
    const model = Buffer.alloc(SIZE)
    const guest = await diskOf(pair.primary)
    for (let round = 0; round < 3; round += 1) {
      await runRandomRequests(guest, model, REQUESTS, seed + round)
      await pair.primary.qmp.execute('replication-checkpoint')
    }
    const agreed = Buffer.from(model)
    await runRandomRequests(guest, model, REQUESTS / 10, seed + 3)
    await pair.primary.server.child.kill()
    guest.abandon()
    await linkLost(pair.secondary.qmp)
    await pair.secondary.qmp.execute('replication-promote')
    await shows(
      t,
      pair.secondary,
      agreed,
      'the promoted side has the checkpoint, and nothing later',
    )

    const after = await diskOf(pair.secondary)
    await runRandomRequests(after, agreed, REQUESTS / 4, seed + 4)
    const returned = await restartHost(t, pair.primary)
    await protection(pair.secondary.qmp, 'protected')
    await protection(returned.qmp, 'protected')
    await runRandomRequests(after, agreed, REQUESTS / 4, seed + 5)
    await after.disconnect()
    await pair.secondary.qmp.execute('replication-switchover')
    t.match(await groupState(returned.qmp), { role: 'primary', protection: 'protected' })
    await shows(t, returned, agreed, 'a planned exchange of the roles loses nothing')
    const again = await diskOf(returned)
    await runRandomRequests(again, agreed, REQUESTS / 4, seed + 6)
    await again.disconnect()
    await endsEqual(t, returned, pair.secondary, agreed)
  })

  void t.test(`${mode} from ${ours} to ${theirs}: a killed primary goes on`, async (t) => {
    const pair = await startPair(t, { mode, formats, disks: { disk: SIZE } })
    const model = Buffer.alloc(SIZE)
    const guest = await diskOf(pair.primary)
    await runRandomRequests(guest, model, REQUESTS / 4, seed)
    await pair.primary.qmp.execute('replication-checkpoint')
    // Ends with a flush: what was not flushed may be lost with the process that held it, and then it is on both sides.
    await runRandomRequests(guest, model, REQUESTS / 4, seed + 1)
    await pair.primary.server.child.kill()
    guest.abandon()
    const returned = await restartHost(t, pair.primary)
    await protection(returned.qmp, 'protected')
    await shows(t, returned, model, 'what was flushed is there')
    await endsEqual(t, returned, pair.secondary, model)
  })
}

for (const formats of [
  { primary: 'qcow', secondary: 'vhd' },
  { primary: 'vhd', secondary: 'qcow' },
] as const) {
  const { primary: ours, secondary: theirs } = formats
  void t.test(`what is trimmed on ${ours} takes no space on ${theirs} either`, async (t) => {
    const { primary, secondary } = await startPair(t, {
      ...{ mode: 'colo', formats, disks: { disk: SIZE } },
    })
    const guest = await diskOf(primary)
    const bytes = Buffer.alloc(4 * MIB, 0x5a)
    const model = Buffer.alloc(SIZE)
    await guest.write(bytes, 2 * MIB)
    await guest.write(bytes.subarray(0, 4096), 8 * MIB)
    bytes.copy(model, 8 * MIB, 0, 4096)
    await primary.qmp.execute('replication-checkpoint')
    await shows(t, secondary, Buffer.concat([model]).fill(0x5a, 2 * MIB, 6 * MIB), 'it was there')
    await guest.trim(2 * MIB, 2 * MIB)
    await guest.zero(4 * MIB, 2 * MIB)
    await primary.qmp.execute('replication-checkpoint')
    await guest.disconnect()
    await shows(t, secondary, model, 'trimmed and zeroed ranges read as zeroes')
    await endsEqual(t, primary, secondary, model)
    for (const { images } of [primary, secondary]) {
      const { blocks } = await stat(images['disk']!)
      t.ok(blocks * 512 < 2 * MIB, `${blocks * 512} bytes are allocated`)
    }
  })
}

void t.test('a chain of images is copied to a new secondary as one disk', async (t) => {
  const [port] = await freePorts(1)
  const directory = await tempDirectory(t)
  const [base, overlay, copy] = ['base.img', 'overlay.qcow2', 'copy.vhd'].map((name) =>
    path.join(directory, name),
  ) as [string, string, string]
  const model = Buffer.alloc(SIZE)
  model.fill('below', 0, 5 * MIB)
  await writeFile(base, model)
  const settings = new Map<string, string>()
  const backing = { named: 'base.img', format: 'aio' }
  await qcowFormat.create(overlay, { size: SIZE, settings, backing }, () => undefined)
  const empty = { size: SIZE, settings, backing: undefined }
  await vhdFormat.create(copy, empty, () => undefined)
  const exportOf = (role: string, pipeline: string): Record<string, string> => ({
    disk: `colo:127.0.0.1:${port}?role=${role}&group=test|${pipeline}`,
  })
  const theirs = await serveColotap(t, { exports: exportOf('secondary', `vhd:${copy}`) })
  const ours = await serveColotap(t, { exports: exportOf('primary', `qcow:${overlay}`) })
  const qmp = await ours.qmp()
  await protection(qmp, 'protected')
  const address = { kind: 'unix', path: ours.socket } as const
  const guest = await NbdClient.connect({ address, exportName: 'disk' })
  await runRandomRequests(guest, model, REQUESTS / 2, SEED)
  await guest.disconnect()
  await qmp.execute('replication-checkpoint')
  t.match([await ours.stop(), await theirs.stop()], [{ code: 0 }, { code: 0 }])
  t.equal(difference(await imageContent(t, copy, 'vhd'), model), undefined)
  t.equal(difference(await imageContent(t, overlay, 'qcow'), model), undefined)
})
