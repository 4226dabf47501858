/**
 * A replicating pair of QEMU processes without a guest, put together as docs/block-replication.txt of QEMU says:
 * quorum over the local disk and a replication node on the primary; hidden and active disks over the shared image on
 * the secondary. The active and hidden disks are on tmpfs where there is one, as QEMU advises.
 */

import { access, constants } from 'node:fs/promises'
import path from 'node:path'
import { mustRun, startChild, type Child } from './child.ts'
import { nbdUri } from './colotap.ts'
import { untilConnects } from './listening.ts'
import { QmpClient } from './qmp.ts'
import { freePorts, tempDirectory, type Scope } from './scope.ts'

export interface QemuHost {
  readonly child: Child
  readonly qmp: QmpClient
}

export interface QemuPair {
  readonly primary: QemuHost
  readonly secondary: QemuHost
  /** The primary's guest disk, over NBD. */
  readonly uri: string
  readonly socket: string
  /** The secondary's NBD server: `parent0` is where the primary writes, `child0` what its own guest sees. */
  readonly secondaryPort: number
  /** As libxl does it: both sides are told; on the primary there is nothing to do. */
  checkpoint(): Promise<void>
}

/** The name under which disks are exported over NBD. */
const EXPORT = 'disk'

/** The primary's disk without replication: a quorum of one, so that only the replication differs. */
export async function startLoneQemu(scope: Scope, image: string): Promise<string> {
  const directory = path.dirname(image)
  const { qmp } = await startQemu(scope, directory, 'lone', primaryDrive(image))
  return nbdUri(await exportOverNbd(qmp, directory, 'lone'), EXPORT)
}

export async function startQemuPair(
  scope: Scope,
  primaryImage: string,
  secondaryImage: string,
  size: number,
): Promise<QemuPair> {
  const pair = await startIdleQemuPair(scope, primaryImage, secondaryImage, size)
  await pair.secondary.qmp.execute('xen-set-replication', { enable: true, primary: false })
  await pair.primary.qmp.execute('xen-set-replication', { enable: true, primary: true })
  return pair
}

/** The same before replication was started. */
export async function startIdleQemuPair(
  scope: Scope,
  primaryImage: string,
  secondaryImage: string,
  size: number,
): Promise<QemuPair> {
  const directory = path.dirname(primaryImage)
  const [port] = await freePorts(1)
  if (port === undefined) throw new Error('no free port')
  const secondary = await startSecondary(scope, directory, secondaryImage, size)
  await secondary.qmp.execute('nbd-server-start', {
    addr: { type: 'inet', data: { host: '127.0.0.1', port: String(port) } },
  })
  for (const device of ['parent0', 'child0'])
    await secondary.qmp.execute('nbd-server-add', { device, writable: true })

  const primary = await startQemu(scope, directory, 'primary', primaryDrive(primaryImage))
  await primary.qmp.execute('human-monitor-command', {
    'command-line': `drive_add -n buddy ${[
      ...['driver=replication', 'mode=primary', 'node-name=replication0', 'file.driver=nbd'],
      ...['file.host=127.0.0.1', `file.port=${port}`, 'file.export=parent0'],
    ].join(',')}`,
  })
  await primary.qmp.execute('x-blockdev-change', { parent: 'disk0', node: 'replication0' })
  const socket = await exportOverNbd(primary.qmp, directory, 'primary')
  return {
    ...{ primary, secondary, socket, uri: nbdUri(socket, EXPORT), secondaryPort: port },
    async checkpoint() {
      await secondary.qmp.execute('xen-colo-do-checkpoint')
      await primary.qmp.execute('xen-colo-do-checkpoint')
    },
  }
}

/** @throws Error when QEMU reports a replication error on that side */
export async function checkQemu({ qmp }: QemuHost): Promise<void> {
  const { error, desc } = (await qmp.execute('query-xen-replication-status')) as {
    error: boolean
    desc?: string
  }
  if (error) throw new Error(`QEMU reports a replication error: ${desc ?? ''}`)
}

function primaryDrive(image: string): string[] {
  return [
    '-drive',
    [
      ...['if=none', 'id=disk0', 'driver=quorum', 'read-pattern=fifo', 'vote-threshold=1'],
      ...['children.0.driver=raw', 'children.0.file.driver=file'],
      `children.0.file.filename=${image}`,
    ].join(','),
  ]
}

async function startSecondary(
  scope: Scope,
  directory: string,
  image: string,
  size: number,
): Promise<QemuHost> {
  const buffers = await bufferDirectory(scope, directory)
  const [active, hidden] = ['active', 'hidden'].map((name) => path.join(buffers, `${name}.qcow2`))
  for (const file of [active, hidden]) {
    await mustRun(scope, 'qemu-img', [...['create', '-q', '-f', 'qcow2', file ?? '', String(size)]])
  }
  return startQemu(scope, directory, 'secondary', [
    '-drive',
    `if=none,id=parent0,driver=raw,file.driver=file,file.filename=${image}`,
    '-drive',
    [
      ...['if=none', 'id=child0', 'driver=replication', 'mode=secondary', 'top-id=child0'],
      ...['file.driver=qcow2', `file.file.filename=${active ?? ''}`],
      ...['file.backing.driver=qcow2', `file.backing.file.filename=${hidden ?? ''}`],
      'file.backing.backing=parent0',
    ].join(','),
  ])
}

async function bufferDirectory(scope: Scope, otherwise: string): Promise<string> {
  try {
    await access('/dev/shm', constants.W_OK)
    return await tempDirectory(scope, '/dev/shm')
  } catch {
    return otherwise
  }
}

async function startQemu(
  scope: Scope,
  directory: string,
  name: string,
  disks: string[],
): Promise<QemuHost> {
  const socket = path.join(directory, `${name}.qmp`)
  const child = startChild(scope, 'qemu-system-x86_64', [
    ...['-S', '-nodefaults', '-display', 'none', '-machine', 'none'],
    ...['-qmp', `unix:${socket},server=on,wait=off`, ...disks],
  ])
  await untilConnects(child, socket)
  return { child, qmp: await QmpClient.connect(scope, socket) }
}

/** @returns the path of the NBD socket */
async function exportOverNbd(qemu: QmpClient, directory: string, name: string): Promise<string> {
  const socket = path.join(directory, `${name}.nbd`)
  await qemu.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } })
  await qemu.execute('nbd-server-add', { device: 'disk0', name: EXPORT, writable: true })
  return socket
}
