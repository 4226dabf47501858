/** The servers that are compared, each started on an image that is made for it. */

import path from 'node:path'
import { startChild, type Child } from '../test/support/child.ts'
import { nbdUri, serveColotap } from '../test/support/colotap.ts'
import { tempDirectory, type Scope } from '../test/support/scope.ts'
import { untilConnects } from '../test/support/listening.ts'
import { COLOTAP } from './table.ts'

/** A server that is up, with one export named `disk`. */
export interface Served {
  readonly uri: string
  readonly socket: string
  readonly process: Child
}

/** Starts a server on the image. */
export interface Contender {
  readonly name: string
  start(scope: Scope, image: string): Promise<Served>
}

export type QemuFormat = 'raw' | 'qcow2' | 'vpc'

export function qemuNbd(format: QemuFormat, aio: 'threads' | 'io_uring', clients = 8): Contender {
  return {
    name: `qemu-nbd ${aio}`,
    async start(scope, image) {
      const socket = path.join(await tempDirectory(scope), 'nbd.sock')
      const server = startChild(scope, 'qemu-nbd', [
        ...['--persistent', `--shared=${clients}`, '--export-name=disk', `--socket=${socket}`],
        ...[`--format=${format}`, '--cache=writeback', `--aio=${aio}`, '--discard=unmap', image],
      ])
      await untilConnects(server, socket)
      return { uri: nbdUri(socket, 'disk'), socket, process: server }
    },
  }
}

export const nbdkitFile: Contender = {
  name: 'nbdkit file',
  start: (scope, image) => nbdkit(scope, ['file', image]),
}

export function nbdkitMemory(size: number): Contender {
  return {
    name: 'nbdkit memory',
    start: (scope) => nbdkit(scope, ['memory', String(size)]),
  }
}

async function nbdkit(scope: Scope, plugin: string[]): Promise<Served> {
  const socket = path.join(await tempDirectory(scope), 'nbd.sock')
  const server = startChild(scope, 'nbdkit', ['--foreground', `--unix=${socket}`, ...plugin])
  await untilConnects(server, socket)
  return { uri: nbdUri(socket, 'disk'), socket, process: server }
}

export function colotapOn(
  pipeline: (image: string) => string,
  args: readonly string[] = [],
): Contender {
  return {
    name: COLOTAP,
    async start(scope, image) {
      const server = await serveColotap(scope, {
        exports: { disk: pipeline(image) },
        args: ['--log-level', 'warn', ...args],
      })
      // Ended in order, so that what it holds back is written before the next subject starts.
      scope.teardown(() => server.stop())
      return { uri: server.uri('disk'), socket: server.socket, process: server.child }
    },
  }
}
