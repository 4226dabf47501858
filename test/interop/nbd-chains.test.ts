/**
 * colotap with another server below it: what that server offers is used, and its death is survived. Killed processes
 * lose nothing that the kernel has; test/drivers/nbd has servers that do.
 */

import { readFile } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { SILENT } from '../../core/logger.ts'
import { Guard } from '../../drivers/guard.ts'
import { openPipeline } from '../../drivers/open.ts'
import { DRIVERS } from '../../drivers/registry.ts'
import { NbdClient } from '../../nbd/client.ts'
import { BlockHistory } from '../../cli/soak/block-history.ts'
import { mustRun, startChild, type Child } from '../support/child.ts'
import { serveColotap, type ColotapServer } from '../support/colotap.ts'
import { createEmptyImage, createSparseImage, imageDifference } from '../support/images.ts'
import { below, seededRandom } from '../../core/seeded-random.ts'
import { tempDirectory } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'

const MiB = 1024 * 1024

/** A server of the image `disk.img` of a directory, on a socket there; it has come up when this resolves. */
interface Below {
  readonly name: string
  readonly exportName: string
  readonly socket: string
  /** Whether it tells the allocation of blocks. */
  readonly maps: boolean
  start(t: Test, directory: string): Promise<Child>
}

const BELOW: readonly Below[] = [
  {
    name: 'qemu-nbd',
    exportName: 'disk',
    socket: 'qemu.sock',
    maps: true,
    async start(t, directory) {
      const args = ['--format=raw', '--persistent', '--shared=16', '--export-name=disk']
      const socket = path.join(directory, this.socket)
      const image = path.join(directory, 'disk.img')
      const child = startChild(t, 'qemu-nbd', [
        ...args,
        '--discard=unmap',
        `--socket=${socket}`,
        image,
      ])
      await answers(child, socket, 'disk')
      return child
    },
  },
  {
    name: 'nbdkit',
    exportName: '',
    socket: 'nbdkit.sock',
    maps: true,
    async start(t, directory) {
      const socket = path.join(directory, this.socket)
      await mustRun(t, 'rm', ['-f', socket])
      const args = ['--foreground', '--exit-with-parent', `--unix=${socket}`, 'file']
      const child = startChild(t, 'nbdkit', [...args, path.join(directory, 'disk.img')])
      await answers(child, socket, '')
      return child
    },
  },
  {
    name: 'colotap',
    exportName: 'disk',
    socket: 'nbd.sock',
    maps: false,
    async start(t, directory) {
      const exports = { disk: `aio:${path.join(directory, 'disk.img')}` }
      return (await serveColotap(t, { exports, directory })).child
    },
  },
]

/** Resolves when the server at `socket` serves the export. */
async function answers(child: Child, socket: string, exportName: string): Promise<void> {
  for (;;) {
    try {
      const client = await NbdClient.connect({
        address: { kind: 'unix', path: socket },
        exportName,
      })
      await client.disconnect()
      return
    } catch (error) {
      if (child.ended) throw error
    }
  }
}

const pipelineOf = (server: Below, directory: string, more = ''): string =>
  `nbd:unix:${path.join(directory, server.socket)}?export=${server.exportName}${more}`

async function serveAbove(t: Test, pipeline: string): Promise<ColotapServer> {
  return serveColotap(t, { exports: { disk: pipeline } })
}

for (const server of BELOW) {
  void t.test(`colotap on ${server.name}: tools read and write through both`, async (t) => {
    const directory = await tempDirectory(t)
    const image = path.join(directory, 'disk.img')
    const content = await createSparseImage(image, 8 * MiB)
    await server.start(t, directory)
    const above = await serveAbove(t, pipelineOf(server, directory))
    const copy = path.join(directory, 'copy.img')
    await mustRun(t, 'nbdcopy', [above.uri('disk'), copy])
    t.equal(await imageDifference(copy, content), undefined, 'what is read')
    const commands = ['write -P 7 1000 70000', 'write -z 3M 1M', 'discard 5M 512k', 'flush']
    await mustRun(t, 'qemu-io', [
      ...['-f', 'raw', '-d', 'unmap'],
      ...commands.flatMap((command) => ['-c', command]),
      above.uri('disk'),
    ])
    content.fill(7, 1000, 71_000)
    content.fill(0, 3 * MiB, 4 * MiB)
    await mustRun(t, 'nbdcopy', [above.uri('disk'), copy])
    const [read, stored] = await Promise.all([readFile(copy), readFile(image)])
    t.ok(read.equals(stored), 'what is stored is what is read')
    for (const part of [content, read]) part.fill(0, 5 * MiB, 5.5 * MiB)
    t.ok(read.equals(content), 'what is written')
    t.same(await above.stop(), CLEAN_EXIT)
  })

  void t.test(
    `colotap on ${server.name}: what the server offers is what the disk can`,
    async (t) => {
      const directory = await tempDirectory(t)
      const content = await createSparseImage(path.join(directory, 'disk.img'), 4 * MiB)
      await server.start(t, directory)
      const { device: disk } = await openPipeline(pipelineOf(server, directory), DRIVERS, {
        exportName: 'disk',
        readOnly: false,
        logger: SILENT,
        attachReplica: () => Promise.reject(new Error('no test here replicates')),
      })
      t.teardown(() => disk.close())
      t.ok(disk instanceof Guard)
      t.equal(disk.geometry.size, 4 * MiB)
      t.match(disk.can, { flush: true, fua: true, trim: true, zero: true })
      const into = Buffer.alloc(4 * MiB)
      await disk.read(into, 0)
      t.ok(into.equals(content))
      if (!server.maps) return
      t.ok(disk.can.status)
      const kinds: string[] = []
      for (let at = 0; at < 4 * MiB;) {
        const extents = await disk.status(at, 4 * MiB - at)
        for (const { at: start, length, kind } of extents) {
          kinds.push(`${kind} ${start / MiB}+${length / MiB}`)
          at = start + length
        }
      }
      t.strictSame(kinds, ['data 0+1', 'hole 1+1', 'data 2+2'])
    },
  )

  void t.test(`colotap on ${server.name}: its death and return lose nothing`, async (t) => {
    const BLOCK = 4096
    const BLOCKS = 256
    const directory = await tempDirectory(t)
    const image = path.join(directory, 'disk.img')
    await createEmptyImage(image, BLOCK * BLOCKS)
    let child = await server.start(t, directory)
    const above = await serveAbove(t, pipelineOf(server, directory, '&deadline=60000'))
    const address = { kind: 'unix', path: above.socket } as const
    const client = await NbdClient.connect({ address, exportName: 'disk' })
    const history = new BlockHistory(BLOCKS, BLOCK)
    const random = seededRandom(11)
    let writes = 0
    let ended = false
    let onWrite = (): void => undefined
    const lane = async (): Promise<void> => {
      while (!ended) {
        const block = below(random, BLOCKS)
        if (!history.idle(block)) continue
        const content = history.issue(block, 1, random() < 0.1)
        if (content === undefined) await client.zero(block * BLOCK, BLOCK)
        else await client.write(content, block * BLOCK)
        history.acknowledge(block, 1)
        writes += 1
        if (writes % 50 === 0) await client.flush()
        onWrite()
      }
    }
    const lanes = Promise.all(Array.from({ length: 8 }, lane))
    for (let kill = 0; kill < 3; kill += 1) {
      const enough = writes + 200 + below(random, 200)
      const reached = new Promise<void>((resolve) => {
        onWrite = () => {
          if (writes >= enough) resolve()
        }
      })
      await Promise.race([reached, lanes])
      await child.kill()
      child = await server.start(t, directory)
    }
    ended = true
    await lanes
    await client.flush()
    const bounds = { acknowledged: history.acknowledged(), issued: history.issued() }
    const disk = Buffer.alloc(BLOCK * BLOCKS)
    await client.read(disk, 0)
    t.equal(history.violation(disk, bounds), undefined, 'what is read')
    t.equal(history.violation(await readFile(image), bounds), undefined, 'what is stored')
    await client.disconnect()
    t.same(await above.stop(), CLEAN_EXIT)
  })

  void t.test(
    `colotap on ${server.name}: without it requests fail, and the end comes`,
    async (t) => {
      const directory = await tempDirectory(t)
      await createEmptyImage(path.join(directory, 'disk.img'), MiB)
      const child = await server.start(t, directory)
      const above = await serveAbove(t, pipelineOf(server, directory, '&deadline=200'))
      const address = { kind: 'unix', path: above.socket } as const
      const client = await NbdClient.connect({ address, exportName: 'disk' })
      await client.write(Buffer.alloc(4096, 1), 0)
      await child.kill()
      await t.rejects(client.read(Buffer.alloc(4096), 0), { code: 'IO' })
      await t.rejects(client.write(Buffer.alloc(4096), 8192), { code: 'IO' })
      await t.rejects(client.flush(), { code: 'IO' }, 'an acknowledged write is not called durable')
      const exit = await above.stop()
      t.same(exit, { code: 1, signal: null }, 'what was acknowledged may be lost: no clean end')
      t.match(above.child.stderr, /acknowledged|not connected/)
      await client.closed
    },
  )
}
