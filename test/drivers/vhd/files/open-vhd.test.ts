import * as fs from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import type { BlockDevice } from '../../../../core/block-device.ts'
import { SILENT } from '../../../../core/logger.ts'
import { openVhd } from '../../../../drivers/vhd/open-vhd.ts'
import { newVhd } from '../vhd-files.ts'

const SIZE = 64 * 1024

void t.test('images in real files are served with their chain of parents', async (t) => {
  const folder = t.testdir()
  const open = (name: string, readOnly: boolean) =>
    openVhd(join(folder, name), { readOnly, logger: SILENT, parents: [] })
  let content: Buffer = Buffer.alloc(SIZE)
  for (const [depth, name] of ['base.vhd', 'middle.vhd', 'top.vhd'].entries()) {
    const before = ['base.vhd', 'middle.vhd'][depth - 1]
    const backing = before === undefined ? undefined : { named: before, format: 'vhd' }
    const bytes = await newVhd(folder, SIZE, {}, backing)
    fs.writeFileSync(join(folder, name), bytes)
    const device = await open(name, false)
    t.ok((await contentOf(device)).equals(content), `${name} begins as its parent`)
    await device.write(Buffer.alloc(2048, depth + 1), depth * 1024, 0)
    content = await contentOf(device)
    await device.close()
  }
  const top = await open('top.vhd', true)
  t.ok((await contentOf(top)).equals(content))
  t.same([...new Set(content)], [1, 2, 3, 0])
  await top.close()
})

void t.test('the footer of 511 bytes that old Virtual PCs wrote is read', async (t) => {
  const good = await newVhd(t.testdir(), SIZE, { subformat: 'fixed' })
  good.fill(7, 0, 512)
  const folder = t.testdir({ 'short.vhd': good.subarray(0, -1) })
  const path = join(folder, 'short.vhd')
  for (const readOnly of [true, false]) {
    const device = await openVhd(path, { readOnly, logger: SILENT, parents: [] })
    const sector = Buffer.alloc(512)
    await device.read(sector, 0)
    t.ok(sector.equals(Buffer.alloc(512, 7)))
    await device.close()
  }
  t.ok(fs.readFileSync(path).equals(good), 'and is made whole when the image is written')
})

const PARENTS: readonly (readonly [
  what: string,
  change: (folder: string) => void,
  why: { readonly code: string; readonly what?: RegExp },
])[] = [
  ['is missing', (f) => fs.rmSync(join(f, 'base.vhd')), { code: 'NOT_FOUND' }],
  [
    'is another image',
    (f) => fs.copyFileSync(join(f, 'other.vhd'), join(f, 'base.vhd')),
    { code: 'INVALID', what: /another uuid/ },
  ],
  [
    'is the image itself',
    (f) => {
      fs.rmSync(join(f, 'base.vhd'))
      fs.linkSync(join(f, 'top.vhd'), join(f, 'base.vhd'))
    },
    { code: 'INVALID', what: /its own ancestor/ },
  ],
  [
    'is a link to somewhere else',
    (f) => {
      fs.rmSync(join(f, 'base.vhd'))
      fs.symlinkSync('/etc/passwd', join(f, 'base.vhd'))
    },
    { code: 'NOT_PERMITTED' },
  ],
]

for (const [what, change, why] of PARENTS) {
  void t.test(`an image whose parent ${what} is refused, and left unlocked`, async (t) => {
    const folder = t.testdir()
    const write = async (name: string, named?: string) => {
      const backing = named === undefined ? undefined : { named, format: 'vhd' }
      fs.writeFileSync(join(folder, name), await newVhd(folder, SIZE, {}, backing))
    }
    await write('base.vhd')
    await write('other.vhd')
    await write('top.vhd', 'base.vhd')
    const before = fs.readFileSync(join(folder, 'top.vhd'))
    change(folder)
    const use = { readOnly: false, logger: SILENT, parents: [] }
    await t.rejects(openVhd(join(folder, 'top.vhd'), use), why)
    t.ok(fs.readFileSync(join(folder, 'top.vhd')).equals(before))
    await (await openVhd(join(folder, 'top.vhd'), { ...use, alone: true })).close()
  })
}

async function contentOf(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(device.geometry.size)
  await device.read(content, 0)
  return content
}
