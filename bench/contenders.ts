/** The servers that are compared, each started on an image that is made for it. */

import path from 'node:path'
import { startChild } from '../test/support/child.ts'
import { nbdUri, serveColotap } from '../test/support/colotap.ts'
import { tempDirectory, type Scope } from '../test/support/scope.ts'
import { untilConnects } from '../test/support/listening.ts'
import { COLOTAP } from './table.ts'

/** Starts a server on the image; gives the URI of its export. */
export interface Contender {
  readonly name: string
  start(scope: Scope, image: string): Promise<string>
}

export type QemuFormat = 'raw' | 'qcow2' | 'vpc'

export function qemuNbd(format: QemuFormat, aio: 'threads' | 'io_uring'): Contender {
  return {
    name: `qemu-nbd ${aio}`,
    async start(scope, image) {
      const socket = path.join(await tempDirectory(scope), 'nbd.sock')
      const server = startChild(scope, 'qemu-nbd', [
        ...['--persistent', '--shared=8', '--export-name=disk', `--socket=${socket}`],
        ...[`--format=${format}`, '--cache=writeback', `--aio=${aio}`, '--discard=unmap', image],
      ])
      await untilConnects(server, socket)
      return nbdUri(socket, 'disk')
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

async function nbdkit(scope: Scope, plugin: string[]): Promise<string> {
  const socket = path.join(await tempDirectory(scope), 'nbd.sock')
  const server = startChild(scope, 'nbdkit', ['--foreground', `--unix=${socket}`, ...plugin])
  await untilConnects(server, socket)
  return nbdUri(socket, 'disk')
}

export function colotapOn(pipeline: (image: string) => string): Contender {
  return {
    name: COLOTAP,
    async start(scope, image) {
      const server = await serveColotap(scope, {
        exports: { disk: pipeline(image) },
        args: ['--log-level', 'warn'],
      })
      // Ended in order, so that what it holds back is written before the next subject starts.
      scope.teardown(() => server.stop())
      return server.uri('disk')
    },
  }
}
