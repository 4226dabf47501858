/**
 * A replicating pair of QEMU processes without a guest, put together as docs/block-replication.txt of QEMU says:
 * quorum over the local disk and a replication node on the primary; hidden and active disks over the shared image on
 * the secondary. The active and hidden disks are on tmpfs where there is one, as QEMU advises.
 */

import { access, constants } from 'node:fs/promises'
import path from 'node:path'
import { mustRun, startChild } from '../test/support/child.ts'
import { nbdUri } from '../test/support/colotap.ts'
import { QmpClient } from '../test/support/qmp.ts'
import { freePorts, tempDirectory, type Scope } from '../test/support/scope.ts'
import { untilConnects } from './listening.ts'
import type { Pair } from './pair.ts'

/** The primary's disk without replication: a quorum of one, so that only the replication differs. */
export async function startLoneQemu(scope: Scope, image: string): Promise<string> {
  const directory = path.dirname(image)
  const qemu = await startQemu(scope, directory, 'lone', primaryDrive(image))
  return exportOverNbd(qemu, directory, 'lone')
}

export async function startQemuPair(
  scope: Scope,
  primaryImage: string,
  secondaryImage: string,
  size: number,
): Promise<Pair> {
  const directory = path.dirname(primaryImage)
  const [port] = (await freePorts(1)).map(String)
  const secondary = await startSecondary(scope, directory, secondaryImage, size)
  await secondary.execute('nbd-server-start', {
    addr: { type: 'inet', data: { host: '127.0.0.1', port } },
  })
  await secondary.execute('nbd-server-add', { device: 'parent0', writable: true })

  const primary = await startQemu(scope, directory, 'primary', primaryDrive(primaryImage))
  await primary.execute('human-monitor-command', {
    'command-line': `drive_add -n buddy ${[
      ...['driver=replication', 'mode=primary', 'node-name=replication0', 'file.driver=nbd'],
      ...['file.host=127.0.0.1', `file.port=${port ?? ''}`, 'file.export=parent0'],
    ].join(',')}`,
  })
  await primary.execute('x-blockdev-change', { parent: 'disk0', node: 'replication0' })
  await secondary.execute('xen-set-replication', { enable: true, primary: false })
  await primary.execute('xen-set-replication', { enable: true, primary: true })
  return {
    uri: await exportOverNbd(primary, directory, 'primary'),
    async checkpoint() {
      const started = performance.now()
      // The order of libxl: both sides are told; on the primary there is nothing to do.
      await secondary.execute('xen-colo-do-checkpoint')
      await primary.execute('xen-colo-do-checkpoint')
      const milliseconds = performance.now() - started
      const status = (await primary.execute('query-xen-replication-status')) as { error: boolean }
      if (status.error) throw new Error('QEMU reports a replication error')
      return { milliseconds }
    },
    durable: () => Promise.resolve(false),
  }
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
): Promise<QmpClient> {
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
): Promise<QmpClient> {
  const socket = path.join(directory, `${name}.qmp`)
  const qemu = startChild(scope, 'qemu-system-x86_64', [
    ...['-S', '-nodefaults', '-display', 'none', '-machine', 'none'],
    ...['-qmp', `unix:${socket},server=on,wait=off`, ...disks],
  ])
  await untilConnects(qemu, socket)
  return QmpClient.connect(scope, socket)
}

async function exportOverNbd(qemu: QmpClient, directory: string, name: string): Promise<string> {
  const socket = path.join(directory, `${name}.nbd`)
  await qemu.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } })
  await qemu.execute('nbd-server-add', { device: 'disk0', name: 'disk', writable: true })
  return nbdUri(socket, 'disk')
}
