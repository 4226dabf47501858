/** What QEMU leaves in QCOW2 images for the next program, and what colotap makes of it: marks, bitmaps, unknown parts. */

import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'

import t, { type Test } from 'tap'

import { mustRun, runTool } from '../support/child.ts'
import { colotap, serveColotap } from '../support/colotap.ts'
import { tempDirectory } from '../support/scope.ts'
import { CLEAN_EXIT } from '../support/served-disk.ts'

async function newImage(t: Test, ...options: string[]): Promise<string> {
  const image = path.join(await tempDirectory(t), 'disk.qcow2')
  await mustRun(t, 'qemu-img', ['create', '-q', '-f', 'qcow2', ...options, image, '8M'])
  return image
}

/** Serves the image, and has QEMU run commands on the disk. */
async function served(t: Test, image: string, ...commands: string[]): Promise<void> {
  const server = await serveColotap(t, { exports: { disk: `qcow:${image}` } })
  const all = commands.flatMap((command) => ['-c', command])
  await mustRun(t, 'qemu-io', ['-f', 'raw', ...all, server.uri('disk')])
  t.same(await server.stop(), CLEAN_EXIT)
}

void t.test(
  'an image that QEMU left with postponed refcounts is repaired, then served',
  async (t) => {
    const image = await newImage(t, '-o', 'lazy_refcounts=on')
    await runTool(t, 'qemu-io', [
      ...['-f', 'qcow2', '-c', 'write -P 5 1M 1M', '-c', 'flush', '-c', 'abort', image],
    ])
    t.equal((await readFile(image)).readBigUInt64BE(72), 1n, 'the dirty bit is set')
    const found = await colotap(t, ['image', 'check', `qcow:${image}`])
    t.match(found, { code: 1, stdout: /not closed in order/ })
    await served(t, image, 'read -P 5 1M 1M', 'write -P 6 4M 1M')
    t.equal((await readFile(image)).readBigUInt64BE(72), 0n)
    await mustRun(t, 'qemu-img', ['check', '-q', '-f', 'qcow2', image])
    await mustRun(t, 'qemu-io', [
      '-f',
      'qcow2',
      '-c',
      'read -P 5 1M 1M',
      '-c',
      'read -P 6 4M 1M',
      image,
    ])
  },
)

void t.test('bitmaps that follow every change are marked, the others stay valid', async (t) => {
  const image = await newImage(t)
  await mustRun(t, 'qemu-img', ['bitmap', '--add', '--enable', image, 'following'])
  await mustRun(t, 'qemu-img', ['bitmap', '--add', '--disable', image, 'resting'])
  const before = await readFile(image)
  await served(t, image, 'read 0 1M')
  t.ok((await readFile(image)).equals(before), 'reading changes nothing')
  await served(t, image, 'write -P 1 0 1M')
  const info = await mustRun(t, 'qemu-img', ['info', '--output=json', image])
  t.match(JSON.parse(info), {
    'format-specific': {
      data: {
        bitmaps: [
          { name: 'following', flags: ['in-use', 'auto'] },
          { name: 'resting', flags: [] },
        ],
      },
    },
  })
  const resized = await serveColotap(t, { exports: { disk: `qcow:${image}` } })
  t.same(await resized.stop(), CLEAN_EXIT)
  await mustRun(t, 'qemu-img', ['check', '-q', '-f', 'qcow2', image])
})

void t.test(
  'unknown parts of the header are kept, but for those that must be cleared',
  async (t) => {
    const image = await newImage(t)
    const bytes = await readFile(image)
    bytes.writeBigUInt64BE(1n << 60n, 80)
    bytes.writeBigUInt64BE(1n << 61n, 88)
    const end = extensionsEnd(bytes)
    bytes.writeUInt32BE(0x1234_5678, end)
    bytes.writeUInt32BE(5, end + 4)
    bytes.write('hello', end + 8)
    await writeFile(image, bytes)
    await served(t, image, 'read 0 1M')
    t.ok((await readFile(image)).equals(bytes), 'reading changes nothing')
    await served(t, image, 'write -P 1 0 1M')
    const after = await readFile(image)
    t.equal(after.readBigUInt64BE(80), 1n << 60n, 'an unknown compatible feature stays')
    t.equal(after.readBigUInt64BE(88), 0n, 'an unknown auto-clear feature goes')
    t.equal(after.toString('latin1', end + 8, end + 13), 'hello', 'an unknown extension stays')
    bytes.writeBigUInt64BE(1n << 62n, 72)
    await writeFile(image, bytes)
    const refused = await colotap(t, ['image', 'map', `qcow:${image}`])
    t.match(refused, { code: 1, stderr: /unknown features: bit 62/ })
    t.ok((await readFile(image)).equals(bytes), 'what is refused is not touched')
  },
)

/** Where the end of the header extensions is, which has room for one more. */
function extensionsEnd(image: Buffer): number {
  for (let at = image.readUInt32BE(100); ; at += 8 + Math.ceil(image.readUInt32BE(at + 4) / 8) * 8)
    if (image.readUInt32BE(at) === 0) return at
}
