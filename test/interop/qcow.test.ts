import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { qcowFormat } from '../../drivers/qcow/qcow-format.ts'
import { NbdClient } from '../../nbd/client.ts'
import { mustRun, runTool } from '../support/child.ts'
import { serveColotap } from '../support/colotap.ts'
import { createSparseImage, difference } from '../support/images.ts'
import { runRandomRequests } from '../support/random-requests.ts'
import { tempDirectory } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'
import { inspectQcow2 } from '../support/qcow-inspector.ts'

const MIB = 1024 * 1024
const SIZE = 6 * MIB + 1536
/** REQUESTS=100 makes a short run. */
const REQUESTS = Number(process.env['REQUESTS'] ?? 10_000)
const SEED = Number(process.env['REQUESTS_SEED'] ?? Date.now() % 1_000_000)

interface Variant {
  readonly name: string
  /** Who makes the image. */
  readonly by: 'colotap' | 'qemu-img'
  readonly options: Readonly<Record<string, string>>
  readonly parent?: 'raw' | 'qcow2' | 'qcow' | 'vpc'
  /** qemu-img fills the image with these options, instead of leaving it empty. */
  readonly convert?: readonly string[]
  readonly format?: 'qcow' | 'qcow2'
  /** Lines for `qemu-img snapshot`, which must find the same content afterwards. */
  readonly snapshot?: boolean
}

const VARIANTS: readonly Variant[] = [
  { name: 'plain', by: 'colotap', options: {} },
  { name: 'version 2', by: 'colotap', options: { version: '2' } },
  { name: '512-byte clusters', by: 'colotap', options: { cluster_size: '512' } },
  {
    name: '64-bit refcounts in 512-byte clusters',
    by: 'colotap',
    options: { cluster_size: '512', refcount_bits: '64' },
  },
  { name: '1-bit refcounts', by: 'colotap', options: { refcount_bits: '1', cluster_size: '4K' } },
  { name: '2 MiB clusters', by: 'colotap', options: { cluster_size: '2M', refcount_bits: '2' } },
  { name: '4-bit refcounts', by: 'colotap', options: { refcount_bits: '4', cluster_size: '8K' } },
  { name: '8-bit refcounts', by: 'colotap', options: { refcount_bits: '8', cluster_size: '1K' } },
  {
    name: '32-bit refcounts',
    by: 'colotap',
    options: { refcount_bits: '32', cluster_size: '512K' },
  },
  { name: 'extended L2', by: 'colotap', options: { extended_l2: 'on' } },
  { name: 'preallocated', by: 'colotap', options: { preallocation: 'metadata' } },
  { name: 'full', by: 'colotap', options: { preallocation: 'full', extended_l2: 'on' } },
  { name: 'data file', by: 'colotap', options: { data_file: 'disk.data' } },
  {
    name: 'raw data file',
    by: 'colotap',
    options: { data_file: 'disk.data', data_file_raw: 'on' },
  },
  { name: 'overlay of raw', by: 'colotap', options: {}, parent: 'raw' },
  { name: 'overlay of qcow2', by: 'colotap', options: { extended_l2: 'on' }, parent: 'qcow2' },
  { name: 'overlay of version 1', by: 'colotap', options: { cluster_size: '4K' }, parent: 'qcow' },
  { name: 'overlay of VHD', by: 'colotap', options: {}, parent: 'vpc' },
  { name: 'version 2 overlay', by: 'colotap', options: { version: '2' }, parent: 'raw' },
  { name: 'version 1', by: 'colotap', options: { version: '1' }, format: 'qcow' },
  {
    name: 'version 1 overlay',
    by: 'colotap',
    options: { version: '1' },
    parent: 'raw',
    format: 'qcow',
  },
  { name: "QEMU's own", by: 'qemu-img', options: { lazy_refcounts: 'on' } },
  { name: "QEMU's preallocated", by: 'qemu-img', options: { preallocation: 'falloc' } },
  { name: "QEMU's compressed", by: 'qemu-img', options: {}, convert: ['-c'] },
  { name: "QEMU's zstd", by: 'qemu-img', options: { compression_type: 'zstd' }, convert: ['-c'] },
  {
    name: "QEMU's compressed in small clusters",
    by: 'qemu-img',
    options: { cluster_size: '4K' },
    convert: ['-c'],
  },
  { name: 'snapshots', by: 'qemu-img', options: {}, convert: [], snapshot: true },
  {
    name: 'snapshots of extended L2',
    by: 'qemu-img',
    options: { extended_l2: 'on', cluster_size: '16K' },
    convert: [],
    snapshot: true,
  },
]

for (const variant of VARIANTS) {
  void t.test(`${REQUESTS} random requests: ${variant.name} (seed ${SEED})`, async (t) => {
    const directory = await tempDirectory(t)
    const image = path.join(directory, 'disk.qcow')
    const { format = 'qcow2' } = variant
    const model = await makeImage(t, directory, image, variant)
    const before = Buffer.from(model)
    await served(t, directory, image, async (client) => {
      // Version 1 cannot take anything back, and says so; a client then does not trim.
      if (format === 'qcow') client.trim = () => Promise.resolve()
      await runRandomRequests(client, model, REQUESTS, SEED)
    })
    if (format === 'qcow2') {
      await mustRun(t, 'qemu-img', ['check', '-q', '-f', 'qcow2', image])
      t.same(inspectQcow2(await readFile(image)), { errors: [], leaks: 0 })
    }
    await same(t, directory, image, format, model)
    await served(t, directory, image, async (client) => {
      const content = Buffer.alloc(model.length)
      await client.read(content, 0)
      t.equal(difference(content, model), undefined, 'it is the same when it is served again')
    })
    if (variant.snapshot === true) {
      await mustRun(t, 'qemu-img', ['snapshot', '-a', 'before', image])
      await mustRun(t, 'qemu-img', ['check', '-q', '-f', 'qcow2', image])
      await same(t, directory, image, format, before)
    }
  })
}

/** Makes the image, and gives what it shows at first. */
async function makeImage(
  t: Test,
  directory: string,
  image: string,
  { by, convert, options, parent, snapshot }: Variant,
): Promise<Buffer> {
  const size = options['version'] === '1' || parent === 'vpc' ? 6 * MIB : SIZE
  const empty = Buffer.alloc(size)
  const parentSize = parent === 'vpc' ? size : 5 * MIB + 1024
  const raw = path.join(directory, 'parent.raw')
  const pairs = Object.entries(options).flatMap(([key, value]) => ['-o', `${key}=${value}`])
  if (by === 'qemu-img') {
    if (convert === undefined) {
      await mustRun(t, 'qemu-img', ['create', '-q', '-f', 'qcow2', ...pairs, image, String(size)])
      return empty
    }
    const content = await createSparseImage(raw, 6 * MIB)
    await mustRun(t, 'qemu-img', [
      ...['convert', ...convert, '-f', 'raw', '-O', 'qcow2', ...pairs],
      ...[raw, image],
    ])
    if (snapshot === true) await mustRun(t, 'qemu-img', ['snapshot', '-c', 'before', image])
    return content
  }
  let backing: { named: string; format: string } | undefined
  if (parent !== undefined) {
    const content = await createSparseImage(raw, parentSize)
    content.copy(empty)
    const named = `parent.${parent}`
    if (parent !== 'raw') {
      const subformat = parent === 'vpc' ? ['-o', 'force_size=on'] : []
      await mustRun(t, 'qemu-img', [
        ...['convert', '-f', 'raw', '-O', parent, ...subformat],
        ...[raw, path.join(directory, named)],
      ])
    }
    const names = { raw: 'aio', qcow2: 'qcow', qcow: 'qcow', vpc: 'vhd' }
    backing = { named, format: names[parent] }
  }
  const settings = new Map(Object.entries(options))
  await qcowFormat.create(image, { size, settings, backing }, () => undefined)
  return empty
}

async function served(
  t: Test,
  directory: string,
  image: string,
  work: (client: NbdClient) => Promise<void>,
): Promise<void> {
  const server = await serveColotap(t, { exports: { disk: `qcow:${image}?cache=64K` }, directory })
  const client = await NbdClient.connect({
    address: { kind: 'unix', path: server.socket },
    exportName: 'disk',
  })
  await work(client)
  await client.disconnect()
  t.same(await server.stop(), CLEAN_EXIT)
}

async function same(
  t: Test,
  directory: string,
  image: string,
  format: string,
  model: Buffer,
): Promise<void> {
  const back = path.join(directory, 'back.raw')
  await mustRun(t, 'qemu-img', ['convert', '-f', format, '-O', 'raw', image, back])
  t.equal(difference(await readFile(back), model), undefined, 'QEMU reads what was written')
}

void t.test('QEMU and colotap find the same faults, and mend them', async (t) => {
  const directory = await tempDirectory(t)
  const raw = path.join(directory, 'source.raw')
  const image = path.join(directory, 'disk.qcow2')
  const broken = path.join(directory, 'broken.qcow2')
  const content = await createSparseImage(raw, 6 * MIB)
  await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, image])
  const bytes = await readFile(image)
  const table = Number(bytes.readBigUInt64BE(48))
  const block = Number(bytes.readBigUInt64BE(table))
  const l1 = Number(bytes.readBigUInt64BE(40))
  const l2 = Number(bytes.readBigUInt64BE(l1) & 0xff_ffff_ffff_fe00n)
  const harm: readonly (readonly [name: string, at: number, patch: Buffer, leak?: 'leak'])[] = [
    ['a leak', block + 2 * 300, Buffer.from([0, 1]), 'leak'],
    ['a refcount that is too low', block + 2 * 10, Buffer.from([0, 0])],
    ['a refcount that is too high', block + 2 * 10, Buffer.from([0, 2]), 'leak'],
    ['a flag that is missing', l2, Buffer.from([0])],
    ['no refcount block', table, Buffer.alloc(8)],
    ['the dirty bit', 79, Buffer.from([1])],
    ['the corrupt bit', 79, Buffer.from([2])],
  ]
  for (const [name, at, patch, leak] of harm) {
    const harmed = Buffer.from(bytes)
    patch.copy(harmed, at)
    await writeFile(broken, harmed)
    const found = await qcowFormat.check(broken, 'none', () => undefined)
    t.ok(found.errors.length + found.leaks.length > 0, `${name} is found`)
    t.equal(found.errors.length === 0, leak === 'leak', name)
    const repair = leak === 'leak' ? 'leaks' : 'all'
    const mended = await qcowFormat.check(broken, repair, () => undefined)
    t.same([mended.errors, mended.leaks], [[], []], `${name} is mended`)
    t.ok(mended.repaired.length > 0)
    await mustRun(t, 'qemu-img', ['check', '-q', '-f', 'qcow2', broken])
    const compared = await runTool(t, 'qemu-img', ['compare', broken, raw])
    t.match(compared, { code: 0 }, `${name}: the content is as it was`)
  }
  t.equal(content.length, 6 * MIB)
})
