/**
 * The same COLO pair made by two projects: one disk on a primary and a secondary whose guests can be played over NBD. For
 * tests that hold colotap against QEMU.
 */

import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { NbdClient } from '../../nbd/client.ts'
import type { ListenAddress } from '../../nbd/address.ts'
import { startIdleQemuPair, type QemuHost } from './qemu-pair.ts'
import { linkLost, protection, restartHost, startHost, type ReplicaHost } from './replica-pair.ts'
import { freePorts, tempDirectory, type Scope } from './scope.ts'
import type { QmpClient } from './qmp.ts'

export type Role = 'primary' | 'secondary'

export interface ColoPair {
  readonly name: 'colotap' | 'QEMU'
  /** A guest's connection to its disk. */
  readonly guest: Readonly<Record<Role, NbdClient>>
  readonly qmp: Readonly<Record<Role, QmpClient>>
  /** Replication starts, as libxl starts it. */
  start(): Promise<void>
  /** Both sides, as libxl does it. */
  checkpoint(): Promise<void>
  /** SIGKILL; the secondary takes over, and is done with all that follows from it. */
  failOver(): Promise<void>
  /** The same without a kill. */
  promote(): Promise<void>
  /** SIGKILL to both at once. @returns the disk that a VM would be started from on the secondary's host */
  powerFailure(): Promise<Buffer>
  /** SIGKILL to one side. */
  kill(role: Role): Promise<void>
}

export type StartColoPair = (
  scope: Scope,
  contents: Readonly<Record<Role, Buffer>>,
) => Promise<ColoPair>

const DISK = 'disk'

export async function startQemuColo(
  scope: Scope,
  contents: Readonly<Record<Role, Buffer>>,
): Promise<ColoPair> {
  const directory = await tempDirectory(scope)
  const images = await writeImages(directory, contents)
  const pair = await startIdleQemuPair(
    scope,
    images.primary,
    images.secondary,
    contents.primary.length,
  )
  const qmp = { primary: pair.primary.qmp, secondary: pair.secondary.qmp }
  const guest = {
    primary: await attach(scope, { kind: 'unix', path: pair.socket }, DISK),
    secondary: await attach(
      scope,
      { kind: 'tcp', host: '127.0.0.1', port: pair.secondaryPort },
      'child0',
    ),
  }
  const kill = (role: Role): Promise<void> => endQemu(pair[role], guest[role])
  const promote = async (): Promise<void> => {
    await qmp.secondary.execute('xen-set-replication', {
      ...{ enable: false, primary: false, failover: true },
    })
    await committed(qmp.secondary)
  }
  return {
    ...{ name: 'QEMU', guest, qmp, kill, promote },
    async start() {
      await qmp.secondary.execute('xen-set-replication', { enable: true, primary: false })
      await qmp.primary.execute('xen-set-replication', { enable: true, primary: true })
    },
    checkpoint: () => pair.checkpoint(),
    async failOver() {
      await kill('primary')
      await promote()
    },
    async powerFailure() {
      await Promise.all([kill('primary'), kill('secondary')])
      return readFile(images.secondary)
    },
  }
}

async function endQemu({ child }: QemuHost, guest: NbdClient): Promise<void> {
  child.signal('SIGKILL')
  await child.end()
  guest.abandon()
}

/** QEMU copies what it has buffered into the secondary's image; until then its status is an error, and no event tells. */
async function committed(qmp: QmpClient): Promise<void> {
  for (;;) {
    const { error } = (await qmp.execute('query-xen-replication-status')) as { error: boolean }
    if (!error) return
  }
}

export async function startColotapColo(
  scope: Scope,
  contents: Readonly<Record<Role, Buffer>>,
): Promise<ColoPair> {
  const directory = await tempDirectory(scope)
  const [port] = await freePorts(1)
  if (port === undefined) throw new Error('no free port')
  const options = { mode: 'colo', disks: { [DISK]: contents.primary.length } } as const
  const host = (role: Role): Promise<ReplicaHost> =>
    startHost(scope, options, directory, role, port, { [DISK]: contents[role] })
  const secondary = await host('secondary')
  const primary = await host('primary')
  const qmp = { primary: primary.qmp, secondary: secondary.qmp }
  await protection(qmp.primary, 'protected')
  // As in QEMU, nothing is replicated until it was started.
  await qmp.primary.execute('xen-set-replication', { enable: false, primary: true })
  const guest = {
    primary: await attach(scope, { kind: 'unix', path: primary.server.socket }, DISK),
    secondary: await attach(scope, { kind: 'unix', path: secondary.server.socket }, DISK),
  }
  const kill = async (role: Role): Promise<void> => {
    const { server } = role === 'primary' ? primary : secondary
    await server.child.kill()
    guest[role].abandon()
  }
  const promote = async (): Promise<void> => {
    await qmp.secondary.execute('xen-set-replication', {
      ...{ enable: false, primary: false, failover: true },
    })
  }
  return {
    ...{ name: 'colotap', guest, qmp, kill, promote },
    async start() {
      await qmp.secondary.execute('xen-set-replication', { enable: true, primary: false })
      await qmp.primary.execute('xen-set-replication', { enable: true, primary: true })
      await protection(qmp.primary, 'protected')
    },
    async checkpoint() {
      await Promise.all([
        qmp.secondary.execute('xen-colo-do-checkpoint'),
        qmp.primary.execute('xen-colo-do-checkpoint'),
      ])
    },
    async failOver() {
      await kill('primary')
      await linkLost(qmp.secondary)
      await promote()
    },
    async powerFailure() {
      await Promise.all([kill('primary'), kill('secondary')])
      const recovered = await restartHost(scope, secondary)
      await recovered.qmp.execute('replication-promote')
      const address = { kind: 'unix', path: recovered.server.socket } as const
      return readDisk(await attach(scope, address, DISK))
    },
  }
}

async function writeImages(
  directory: string,
  contents: Readonly<Record<Role, Buffer>>,
): Promise<Record<Role, string>> {
  const images = {
    primary: path.join(directory, 'primary.img'),
    secondary: path.join(directory, 'secondary.img'),
  }
  await writeFile(images.primary, contents.primary)
  await writeFile(images.secondary, contents.secondary)
  return images
}

async function attach(
  scope: Scope,
  address: ListenAddress,
  exportName: string,
): Promise<NbdClient> {
  const client = await NbdClient.connect({ address, exportName })
  scope.teardown(() => client.abandon())
  return client
}

/** All that a guest sees. */
export async function readDisk(guest: NbdClient): Promise<Buffer> {
  const disk = Buffer.alloc(guest.info.size)
  await guest.read(disk, 0)
  return disk
}
