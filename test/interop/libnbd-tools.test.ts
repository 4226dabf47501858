import t from 'tap'
import { readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { mustRun } from '../support/child.ts'
import { serveColotap } from '../support/colotap.ts'
import { createEmptyImage, createSparseImage, difference } from '../support/images.ts'
import { imageDifference } from '../support/images.ts'
import { tempDirectory, type Scope } from '../support/scope.ts'
import { BACKENDS, CLEAN_EXIT, serveDisk } from '../support/served-disk.ts'

/** Odd on purpose: no size is rounded. */
const SIZE = 24 * 1024 * 1024 + 777

interface ExportInfo {
  readonly 'export-name': string
  readonly 'export-size': number
}

async function nbdinfo(scope: Scope, ...args: string[]): Promise<unknown> {
  return JSON.parse(await mustRun(scope, 'nbdinfo', ['--json', ...args]))
}

/** Bytes that a file takes on its disk. */
async function allocated(file: string): Promise<number> {
  return (await stat(file)).blocks * 512
}

for (const backend of BACKENDS) {
  void t.test(`nbdinfo sees the size and the abilities of ${backend}`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    t.match(await nbdinfo(t, uri), {
      protocol: 'newstyle-fixed',
      TLS: false,
      structured: true,
      exports: [
        {
          'export-name': 'disk',
          'export-size': SIZE,
          contexts: ['base:allocation'],
          block_size_minimum: 1,
          block_size_preferred: 4096,
          block_size_maximum: 32 * 1024 * 1024,
          can_df: true,
          can_fast_zero: true,
          can_cache: backend === 'aio',
          is_read_only: false,
          can_flush: true,
          can_fua: true,
          can_trim: true,
          can_zero: true,
          can_multi_conn: true,
        },
      ],
    })
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`nbdcopy copies in and out of ${backend} over several connections`, async (t) => {
    const { server, uri, directory, image } = await serveDisk(t, backend, SIZE)
    const source = path.join(directory, 'source.raw')
    const back = path.join(directory, 'back.raw')
    const content = await createSparseImage(source, SIZE)
    await mustRun(t, 'nbdcopy', ['--connections=4', '--requests=32', '--flush', source, uri])
    await mustRun(t, 'nbdcopy', ['--connections=4', '--requests=32', uri, back])
    t.equal(difference(await readFile(back), content), undefined)
    t.same(await server.stop(), CLEAN_EXIT)
    if (image !== undefined) t.equal(await imageDifference(image, content), undefined)
  })

  void t.test(`nbdinfo --map shows what is allocated on ${backend}`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 1 4M 2M', uri])
    const hole = { type: 3, description: 'hole,zero' }
    const MIB = 1024 * 1024
    t.match(await nbdinfo(t, '--map', uri), [
      { offset: 0, length: 4 * MIB, ...hole },
      { offset: 4 * MIB, length: 2 * MIB, type: 0, description: 'data' },
      { offset: 6 * MIB, length: SIZE - 6 * MIB, ...hole },
    ])
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`what is a hole on ${backend} stays one in nbdcopy's file, and back`, async (t) => {
    const { server, uri, directory, image } = await serveDisk(t, backend, SIZE)
    const source = path.join(directory, 'source.raw')
    const back = path.join(directory, 'back.raw')
    const content = await createSparseImage(source, SIZE)
    for (const [from, to] of [
      [source, uri],
      [uri, back],
    ] as const)
      await mustRun(t, 'nbdcopy', ['--connections=4', '--sparse=4096', from, to])
    t.equal(difference(await readFile(back), content), undefined)
    const most = await allocated(source)
    t.ok((await allocated(back)) <= most + 64 * 1024, 'the copy is as sparse as its source')
    if (image !== undefined) t.ok((await allocated(image)) <= most + 64 * 1024)
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`nbdcopy --destination-is-zero and --allocated agree on ${backend}`, async (t) => {
    const { server, uri, directory } = await serveDisk(t, backend, SIZE)
    const source = path.join(directory, 'source.raw')
    const back = path.join(directory, 'back.raw')
    const content = await createSparseImage(source, SIZE, 2)
    await mustRun(t, 'nbdcopy', ['--destination-is-zero', source, uri])
    await mustRun(t, 'nbdcopy', ['--allocated', '--synchronous', uri, back])
    t.equal(difference(await readFile(back), content), undefined)
    t.same(await server.stop(), CLEAN_EXIT)
  })
}

void t.test('nbdinfo lists every export with its own size', async (t) => {
  const directory = await tempDirectory(t)
  const image = path.join(directory, 'system.img')
  await createEmptyImage(image, 1024 * 1024)
  const server = await serveColotap(t, {
    directory,
    exports: { system: `aio:${image}`, 'data disk': 'ram:2M', größe: 'ram:513' },
  })
  const { exports } = (await nbdinfo(t, '--list', server.uri(''))) as { exports: ExportInfo[] }
  t.same(Object.fromEntries(exports.map((info) => [info['export-name'], info['export-size']])), {
    system: 1024 * 1024,
    'data disk': 2 * 1024 * 1024,
    größe: 513,
  })
  t.same(await server.stop(), CLEAN_EXIT)
})

void t.test('nbdinfo is refused an export that does not exist', async (t) => {
  const { server } = await serveDisk(t, 'ram', SIZE)
  await t.rejects(
    mustRun(t, 'nbdinfo', [server.uri('nothing')]),
    /nothing|does not exist|not found/i,
  )
  t.match(await nbdinfo(t, server.uri('disk')), { exports: [{ 'export-size': SIZE }] })
  t.same(await server.stop(), CLEAN_EXIT)
})

void t.test('a read-only server tells nbdinfo so, and refuses nbdcopy', async (t) => {
  const { server, uri, directory, image } = await serveDisk(t, 'aio', SIZE, ['--read-only'])
  const source = path.join(directory, 'source.raw')
  await createSparseImage(source, SIZE)
  t.match(await nbdinfo(t, uri), { exports: [{ is_read_only: true }] })
  await t.rejects(mustRun(t, 'nbdcopy', [source, uri]), /read.?only|permitted/i)
  t.same(await server.stop(), CLEAN_EXIT)
  t.equal(await imageDifference(image ?? '', Buffer.alloc(SIZE)), undefined)
})
