/** The `nbd` driver over TLS against the servers that others use, which have GnuTLS: it is encrypted and proved, or not used. */

import { readFile } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import type { BlockDevice } from '../../core/block-device.ts'
import { SILENT } from '../../core/logger.ts'
import { openPipeline } from '../../drivers/open.ts'
import { DRIVERS } from '../../drivers/registry.ts'
import { Authority, writePskFile } from '../support/certificates.ts'
import { startChild, type Child } from '../support/child.ts'
import { createSparseImage } from '../support/images.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'

const SIZE = 1024 * 1024

async function open(t: Test, pipeline: string): Promise<BlockDevice> {
  const { device: disk } = await openPipeline(pipeline, DRIVERS, {
    exportName: 'disk',
    readOnly: false,
    logger: SILENT,
    attachReplica: () => Promise.reject(new Error('no test here replicates')),
  })
  t.teardown(() => disk.close())
  return disk
}

/** Opens it as soon as the server listens. */
async function openWhenUp(t: Test, child: Child, pipeline: string): Promise<BlockDevice> {
  for (;;) {
    try {
      return await open(t, pipeline)
    } catch (error) {
      if (child.ended || (error as { code?: string }).code !== 'LINK_LOST') throw error
    }
  }
}

interface Place {
  readonly directory: string
  readonly image: string
  readonly port: number
  readonly content: Buffer
}

async function place(t: Test): Promise<Place> {
  const directory = await tempDirectory(t)
  const image = path.join(directory, 'disk.img')
  const content = await createSparseImage(image, SIZE)
  const [port] = await freePorts(1)
  return { directory, image, port: port!, content }
}

const qemuNbd = (t: Test, { directory, image, port }: Place): Child =>
  startChild(t, 'qemu-nbd', [
    ...[
      '--object',
      `tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir=${directory}/server`,
    ],
    ...['--tls-creds=tls', '--format=raw', '--persistent', '--shared=16', '--export-name=disk'],
    ...[`--port=${port}`, '--bind=127.0.0.1', image],
  ])

const nbdkit = (t: Test, { image, port }: Place, ...args: string[]): Child =>
  startChild(t, 'nbdkit', [
    ...['--foreground', '--exit-with-parent', `--port=${port}`, '--ipaddr=127.0.0.1', ...args],
    ...['file', image],
  ])

/** What is read and written is what the image has. */
async function works(t: Test, disk: BlockDevice, { image, content }: Place): Promise<void> {
  const into = Buffer.alloc(SIZE)
  await disk.read(into, 0)
  t.ok(into.equals(content), 'it reads')
  await disk.write(Buffer.alloc(70_000, 7), 1000, 0)
  await disk.flush()
  content.fill(7, 1000, 71_000)
  t.ok((await readFile(image)).equals(content), 'it writes')
  await disk.close()
}

void t.test('with certificates, on qemu-nbd and on nbdkit', async (t) => {
  for (const kind of ['qemu-nbd', 'nbdkit']) {
    const here = await place(t)
    const authority = await Authority.make(t, `${here.directory}/ca`)
    await authority.issue(`${here.directory}/server`, 'server')
    await authority.issue(`${here.directory}/client`, 'client')
    const certificates = `--tls-certificates=${here.directory}/server`
    const child =
      kind === 'qemu-nbd'
        ? qemuNbd(t, here)
        : nbdkit(t, here, '--tls=require', '--tls-verify-peer', certificates)
    const name = kind === 'qemu-nbd' ? 'disk' : ''
    const pipeline = `nbd:127.0.0.1:${here.port}?export=${name}&tls-creds=${here.directory}/client`
    await works(t, await openWhenUp(t, child, pipeline), here)
  }
})

void t.test('with pre-shared keys, on nbdkit', async (t) => {
  const here = await place(t)
  const keys = await writePskFile(`${here.directory}/keys`)
  const child = nbdkit(t, here, '--tls=require', `--tls-psk=${keys}`)
  await works(t, await openWhenUp(t, child, `nbd:127.0.0.1:${here.port}?tls-psk=${keys}`), here)
})

void t.test('a server that does not prove itself is not used', async (t) => {
  const here = await place(t)
  const authority = await Authority.make(t, `${here.directory}/ca`)
  const other = await Authority.make(t, `${here.directory}/other-ca`)
  await authority.issue(`${here.directory}/server`, 'server', { names: 'DNS:storage' })
  await authority.issue(`${here.directory}/client`, 'client')
  await other.issue(`${here.directory}/stranger`, 'client')
  const child = qemuNbd(t, here)
  const pipeline = (client: string, more = ''): string =>
    `nbd:127.0.0.1:${here.port}?export=disk&tls-creds=${here.directory}/${client}${more}`
  const disk = await openWhenUp(t, child, pipeline('client', '&tls-name=storage'))
  t.equal(disk.geometry.size, SIZE, 'by the name that it has')
  const refused = { name: 'Fault', code: 'REFUSED', message: /TLS/ }
  await t.rejects(open(t, pipeline('client')), refused, 'by another name')
  await t.rejects(
    open(t, pipeline('stranger', '&tls-name=storage')),
    refused,
    'by another authority',
  )
})

void t.test('a server without TLS is not used without it, nor one with TLS', async (t) => {
  const here = await place(t)
  const keys = await writePskFile(`${here.directory}/keys`)
  const plain = nbdkit(t, here)
  const address = `nbd:127.0.0.1:${here.port}`
  await (await openWhenUp(t, plain, address)).close()
  await t.rejects(open(t, `${address}?tls-psk=${keys}`), {
    code: 'NOT_SUPPORTED',
    message: /encrypt/,
  })
  await plain.kill()
  const encrypted = nbdkit(t, here, '--tls=require', `--tls-psk=${keys}`)
  await (await openWhenUp(t, encrypted, `${address}?tls-psk=${keys}`)).close()
  await t.rejects(open(t, address), { name: 'Fault', message: /TLS|refused/ })
})
