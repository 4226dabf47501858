import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { NbdClient } from '../../nbd/client.ts'
import { mustRun, runTool } from '../support/child.ts'
import { colotap, serveColotap } from '../support/colotap.ts'
import { createSparseImage, difference } from '../support/images.ts'
import { runRandomRequests } from '../support/random-requests.ts'
import { tempDirectory } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'
import { inspectVhd, readVhd } from '../support/vhd-inspector.ts'
import { readByLibvhdi } from '../support/vhd-peer.ts'

const MIB = 1024 * 1024
const SIZE = 9 * MIB
/** REQUESTS=100 makes a short run. */
const REQUESTS = Number(process.env['REQUESTS'] ?? 10_000)
const SEED = Number(process.env['REQUESTS_SEED'] ?? Date.now() % 1_000_000)

interface Variant {
  readonly name: string
  readonly options: readonly string[]
  readonly parent: 'none' | 'raw' | 'vhd'
  /** QEMU takes a differencing image for a dynamic one, and knows no block size but 2 MiB well. */
  readonly qemuReads: boolean
}

const VARIANTS: readonly Variant[] = [
  { name: 'fixed', options: ['-o', 'subformat=fixed'], parent: 'none', qemuReads: true },
  { name: 'dynamic', options: [], parent: 'none', qemuReads: true },
  { name: 'dynamic with a batmap', options: ['-o', 'batmap=on'], parent: 'none', qemuReads: true },
  { name: 'small blocks', options: ['-o', 'block_size=64K'], parent: 'none', qemuReads: true },
  { name: 'differencing over raw', options: [], parent: 'raw', qemuReads: false },
  {
    name: 'differencing over VHD',
    options: ['-o', 'block_size=512K'],
    parent: 'vhd',
    qemuReads: false,
  },
]

for (const { name, options, parent, qemuReads } of VARIANTS) {
  void t.test(`${REQUESTS} random requests on a ${name} image (seed ${SEED})`, async (t) => {
    const directory = await tempDirectory(t)
    const image = path.join(directory, 'disk.vhd')
    const model = await makeParent(t, directory, parent)
    const backing = parent === 'none' ? [] : ['-o', BACKING[parent]]
    await must(t, [
      'image',
      'create',
      `vhd:${image}`,
      '--size',
      String(SIZE),
      ...options,
      ...backing,
    ])

    const server = await serveColotap(t, { exports: { disk: `vhd:${image}` }, directory })
    const client = await NbdClient.connect({
      address: { kind: 'unix', path: server.socket },
      exportName: 'disk',
    })
    const below = Buffer.from(model)
    await runRandomRequests(client, model, REQUESTS, SEED)
    await client.disconnect()
    t.same(await server.stop(), CLEAN_EXIT)

    const file = await readFile(image)
    t.equal(inspectVhd(file, true), undefined)
    t.equal(difference(readVhd(file, below), model), undefined, 'an independent reader agrees')
    if (qemuReads) t.equal(await readByQemu(t, image), await digestOf(model), 'QEMU agrees')

    const again = await serveColotap(t, {
      exports: { disk: `vhd:${image}` },
      directory,
      args: ['--read-only'],
    })
    const reader = await NbdClient.connect({
      address: { kind: 'unix', path: again.socket },
      exportName: 'disk',
    })
    const content = Buffer.alloc(SIZE)
    await reader.read(content, 0)
    t.equal(difference(content, model), undefined, 'and so does colotap')
    await reader.disconnect()
    t.same(await again.stop(), CLEAN_EXIT)
  })
}

const BACKING = {
  raw: 'backing=parent.raw,backing_format=raw',
  vhd: 'backing=parent.vhd,backing_format=vhd',
}

/** What the image shows at first. */
async function makeParent(t: Test, directory: string, kind: Variant['parent']): Promise<Buffer> {
  if (kind === 'none') return Buffer.alloc(SIZE)
  const raw = path.join(directory, 'parent.raw')
  const content = await createSparseImage(raw, SIZE)
  if (kind === 'vhd') await convert(t, raw, path.join(directory, 'parent.vhd'), 'dynamic')
  return content
}

void t.test('libvhdi reads a chain of images of ours, and a base of QEMU', async (t) => {
  const directory = await tempDirectory(t)
  const at = (name: string): string => path.join(directory, name)
  const model = await makeParent(t, directory, 'vhd')
  const chain = [at('parent.vhd')]
  for (const [name, options] of [
    ['child.vhd', 'backing=parent.vhd,backing_format=vhd'],
    ['top.vhd', 'backing=child.vhd,backing_format=vhd'],
  ] as const) {
    await must(t, ['image', 'create', `vhd:${at(name)}`, '-o', options])
    chain.unshift(at(name))
    const server = await serveColotap(t, { exports: { disk: `vhd:${at(name)}` }, directory })
    const client = await NbdClient.connect({
      address: { kind: 'unix', path: server.socket },
      exportName: 'disk',
    })
    for (let piece = 0; piece < 40; piece += 1) {
      const bytes = Buffer.alloc(4096 * (1 + (piece % 5)), chain.length * 50 + piece)
      const where = (((piece * 7919 + chain.length * 104_729) % 2000) + 1) * 4096
      if (piece % 8 === 7) await client.zero(where, bytes.length)
      else await client.write(bytes, where)
      if (piece % 8 === 7) model.fill(0, where, where + bytes.length)
      else bytes.copy(model, where)
    }
    await client.disconnect()
    t.same(await server.stop(), CLEAN_EXIT)
    t.equal(difference(await readByLibvhdi(t, chain), model), undefined, name)
  }
})

for (const subformat of ['dynamic', 'fixed']) {
  void t.test(`a ${subformat} image of qemu-img's is served as it is`, async (t) => {
    const directory = await tempDirectory(t)
    const raw = path.join(directory, 'source.raw')
    const image = path.join(directory, 'disk.vhd')
    await createSparseImage(raw, SIZE)
    await convert(t, raw, image, subformat)
    const server = await serveColotap(t, { exports: { disk: `vhd:${image}` }, directory })
    const compared = await runTool(t, 'qemu-img', [
      ...['compare', '-f', 'raw', '-F', 'raw'],
      ...[raw, server.uri('disk')],
    ])
    t.match(compared, { code: 0, stdout: /identical/ })
    await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 9 5000000 70000', server.uri('disk')])
    t.same(await server.stop(), CLEAN_EXIT)
    await mustRun(t, 'qemu-io', ['-f', 'vpc', '-c', 'read -P 9 5000192 69632', image])
  })
}

void t.test('QEMU writes into an image of ours, and we read what it wrote', async (t) => {
  const directory = await tempDirectory(t)
  const image = path.join(directory, 'disk.vhd')
  await must(t, ['image', 'create', `vhd:${image}`, '--size', '100M'])
  await mustRun(t, 'qemu-io', ['-f', 'vpc', '-c', 'write -P 7 3M 4M', image])
  await must(t, ['image', 'check', `vhd:${image}`])
  const server = await serveColotap(t, { exports: { disk: `vhd:${image}` }, directory })
  const reads = ['-c', 'read -P 7 3M 4M', '-c', 'read -P 0 0 3M', '-c', 'read -P 0 7M 93M']
  await mustRun(t, 'qemu-io', ['-f', 'raw', ...reads, server.uri('disk')])
  t.same(await server.stop(), CLEAN_EXIT)
})

void t.test('what a crash left behind the last block is found and cut off', async (t) => {
  const directory = await tempDirectory(t)
  const image = path.join(directory, 'disk.vhd')
  await must(t, ['image', 'create', `vhd:${image}`, '--size', '100M'])
  const clean = await readFile(image)
  const footer = clean.subarray(-512)
  await writeFile(image, Buffer.concat([clean, Buffer.alloc(8 * MIB, 7), footer]))
  t.match(await must(t, ['image', 'check', `vhd:${image}`]), /waste: \d+ bytes behind the last/)
  t.match(await must(t, ['image', 'check', `vhd:${image}`, '--repair', 'leaks']), /mended/)
  t.equal(difference(await readFile(image), clean), undefined)

  await writeFile(image, Buffer.concat([Buffer.alloc(512), clean.subarray(512)]))
  const broken = await colotap(t, ['image', 'check', `vhd:${image}`])
  t.match(broken, { code: 1, stdout: /error: at the beginning: there is no VHD footer/ })
  t.match(await must(t, ['image', 'check', `vhd:${image}`, '--repair', 'all']), /mended/)
  t.equal(difference(await readFile(image), clean), undefined)
})

void t.test('every size that an image can have is the same one for QEMU', async (t) => {
  const directory = await tempDirectory(t)
  for (const size of ['64K', '100M', '127G', '2040G']) {
    for (const batmap of ['on', 'off']) {
      const image = path.join(directory, `${size}-${batmap}.vhd`)
      await must(t, ['image', 'create', `vhd:${image}`, '--size', size, '-o', `batmap=${batmap}`])
      const shown = await mustRun(t, 'qemu-img', ['info', '--output=json', '-f', 'vpc', image])
      const ours = await must(t, ['image', 'info', `vhd:${image}`, '--json'])
      const virtual = (JSON.parse(shown) as { 'virtual-size': number })['virtual-size']
      t.match(JSON.parse(ours), { chain: [{ size: virtual }] }, `${size}, batmap=${batmap}`)
    }
  }
})

void t.test('the image commands make, show and commit a chain', async (t) => {
  const directory = await tempDirectory(t)
  const at = (name: string): string => `vhd:${path.join(directory, name)}`
  await must(t, ['image', 'create', at('base.vhd'), '--size', '8M'])
  await must(t, ['image', 'snapshot', at('base.vhd'), '--to', at('top.vhd')])
  const server = await serveColotap(t, { exports: { disk: at('top.vhd') }, directory })
  await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 5 1M 64K', server.uri('disk')])
  const busy = await colotap(t, ['image', 'commit', at('top.vhd')])
  t.match(busy, { code: 1, stderr: /in use by process/ })
  t.same(await server.stop(), CLEAN_EXIT)

  const shown = JSON.parse(await must(t, ['image', 'info', at('top.vhd'), '--json'])) as unknown
  t.match(shown, {
    chain: [
      { format: 'vhd', size: 8 * MIB, backing: { named: './base.vhd', format: 'vhd' } },
      { format: 'vhd', size: 8 * MIB, details: { type: 'dynamic' } },
    ],
  })
  const map = JSON.parse(await must(t, ['image', 'map', at('top.vhd'), '--json'])) as unknown
  t.match(map, [
    { start: 0, length: MIB, kind: 'hole' },
    { start: MIB, length: 64 * 1024, kind: 'data' },
    { start: MIB + 64 * 1024, length: 7 * MIB - 64 * 1024, kind: 'hole' },
  ])
  await must(t, ['image', 'commit', at('top.vhd')])
  await mustRun(t, 'qemu-io', [
    ...['-f', 'vpc', '-c', 'read -P 5 1M 64K', '-c', 'read -P 0 0 1M'],
    path.join(directory, 'base.vhd'),
  ])
  t.match(await must(t, ['image', 'check', at('top.vhd')]), /no faults/)
  const alone = await colotap(t, ['image', 'commit', at('base.vhd')])
  t.match(alone, { code: 1, stderr: /no parent to commit into/ })
})

const WRONG: readonly (readonly [args: readonly string[], code: number, stderr: RegExp])[] = [
  [['image'], 2, /image --help/],
  [['image', 'creat', 'vhd:x'], 2, /did you mean "image create"/],
  [['image', 'create'], 2, /no image is given/],
  [['image', 'create', 'vhd:x'], 2, /no size is given/],
  [['image', 'create', 'vdi:x', '--size', '1G'], 2, /no image format is called "vdi"/],
  [['image', 'create', 'vhd:x|vhd:y', '--size', '1G'], 2, /no single image/],
  [['image', 'create', 'vhd:x', '--size', '1G', '-o', 'colour=red'], 2, /no property "colour"/],
  [['image', 'create', 'vhd:x', '--size', '1G', '-o', 'backing=y'], 2, /backing_format together/],
  [['image', 'create', 'vhd:x', '--size', '2041G'], 1, /larger than 2040 GiB/],
  [['image', 'create', 'vhd:/dev/null', '--size', '1G'], 1, /a file of that name already/],
  [['image', 'snapshot', 'vhd:x'], 2, /no new image/],
  [['image', 'info', 'vhd:/nowhere/x'], 1, /does not exist/],
  [['image', 'check', 'vhd:/dev/zero'], 1, /character device/],
  [['image', 'check', 'vhd:x', '--repair', 'some'], 2, /give leaks or all/],
]

void t.test('what the image commands cannot do, they say in one line', async (t) => {
  for (const [args, code, stderr] of WRONG) {
    const result = await colotap(t, args)
    t.match(result, { code, stderr }, args.join(' '))
    t.equal(result.stderr.trim().split('\n').length, 1)
  }
})

async function must(t: Test, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await colotap(t, args)
  if (code !== 0) throw new Error(`colotap ${args.join(' ')}: ${stderr}`)
  return stdout
}

async function convert(t: Test, raw: string, image: string, subformat: string): Promise<void> {
  const options = ['-o', `subformat=${subformat},force_size=on`]
  await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'vpc', ...options, raw, image])
}

async function readByQemu(t: Test, image: string): Promise<string> {
  const raw = `${image}.raw`
  await mustRun(t, 'qemu-img', ['convert', '-f', 'vpc', '-O', 'raw', image, raw])
  return digestOf(await readFile(raw))
}

async function digestOf(content: Buffer): Promise<string> {
  const digest = await crypto.subtle.digest('SHA-256', new Uint8Array(content))
  return Buffer.from(digest).toString('hex')
}
