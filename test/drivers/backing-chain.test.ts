import { execFileSync } from 'node:child_process'
import * as fs from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { BackingChain, MOST_LAYERS, parentFolders } from '../../drivers/backing-chain.ts'

const TREE = {
  vm: {
    'top.vhd': 'top',
    'base.vhd': 'base',
    below: { 'deep.vhd': 'deep' },
    folder: {},
    'linked.vhd': t.fixture('symlink', '../other/far.vhd'),
    'inner.vhd': t.fixture('symlink', 'below/deep.vhd'),
    'again.vhd': t.fixture('link', 'top.vhd'),
  },
  other: { 'far.vhd': 'far' },
  'vm-not': { 'x.vhd': 'x' },
}

void t.test('a parent may lie in the folder of the image, and below it', async (t) => {
  const folder = fs.realpathSync(t.testdir(TREE))
  const chain = await BackingChain.from(join(folder, 'vm/top.vhd'), [])
  for (const [named, place] of [
    ['base.vhd', 'vm/base.vhd'],
    ['./below/../base.vhd', 'vm/base.vhd'],
    ['below/deep.vhd', 'vm/below/deep.vhd'],
    [join(folder, 'vm/base.vhd'), 'vm/base.vhd'],
    ['inner.vhd', 'vm/below/deep.vhd'],
  ] as const)
    t.equal((await chain.parent(named)).path, join(folder, place), named)
})

void t.test('it may lie nowhere else, unless the operator says so', async (t) => {
  const folder = fs.realpathSync(t.testdir(TREE))
  const top = join(folder, 'vm/top.vhd')
  const chain = await BackingChain.from(top, [])
  for (const named of [
    '../other/far.vhd',
    join(folder, 'other/far.vhd'),
    '../vm-not/x.vhd',
    'linked.vhd',
    '/etc/passwd',
  ]) {
    await t.rejects(chain.parent(named), { code: 'NOT_PERMITTED', where: top }, named)
  }
  const wider = await BackingChain.from(top, parentFolders(join(folder, 'other')))
  t.equal((await wider.parent('linked.vhd')).path, join(folder, 'other/far.vhd'))
  // Relative names count from the image that has them, and its folder is not allowed for that.
  const far = await wider.parent('../other/far.vhd')
  await t.rejects(far.parent('../vm-not/x.vhd'), { code: 'NOT_PERMITTED' })
  t.equal((await far.parent('../vm/base.vhd')).path, join(folder, 'vm/base.vhd'))
})

void t.test('an image is never its own ancestor, whatever it is called', async (t) => {
  const folder = fs.realpathSync(t.testdir(TREE))
  const chain = await BackingChain.from(join(folder, 'vm/top.vhd'), [])
  const base = await chain.parent('base.vhd')
  for (const named of ['top.vhd', './below/../top.vhd', 'again.vhd', 'base.vhd'])
    await t.rejects(base.parent(named), { code: 'INVALID', what: /its own ancestor/ }, named)
})

void t.test('what is no file and no block device is no parent', async (t) => {
  const folder = fs.realpathSync(t.testdir(TREE))
  execFileSync('mkfifo', [join(folder, 'vm/pipe')])
  const chain = await BackingChain.from(join(folder, 'vm/top.vhd'), ['/dev'])
  for (const named of ['folder', 'pipe', '/dev/null'])
    await t.rejects(chain.parent(named), { code: 'INVALID', what: /no regular file/ }, named)
  for (const named of ['', 'a\0b']) await t.rejects(chain.parent(named), { code: 'INVALID' })
  for (const named of ['missing.vhd', 'base.vhd/x'])
    await t.rejects(chain.parent(named), { code: 'NOT_FOUND' }, named)
})

void t.test('a chain has an end', async (t) => {
  const files = Array.from({ length: MOST_LAYERS + 1 }, (_, index) => [`${index}.vhd`, 'x'])
  const folder = t.testdir(Object.fromEntries(files) as Record<string, string>)
  let chain = await BackingChain.from(join(folder, '0.vhd'), [])
  for (let layer = 1; layer < MOST_LAYERS; layer += 1) chain = await chain.parent(`${layer}.vhd`)
  await t.rejects(chain.parent(`${MOST_LAYERS}.vhd`), { code: 'INVALID', what: /more than 64/ })
})

void t.test('an image or a folder that is not there is said to be missing', async (t) => {
  const folder = t.testdir(TREE)
  await t.rejects(BackingChain.from(join(folder, 'vm/none.vhd'), []), { code: 'NOT_FOUND' })
  await t.rejects(BackingChain.from(join(folder, 'vm/top.vhd'), [join(folder, 'none')]), {
    code: 'NOT_FOUND',
  })
  t.same(parentFolders(undefined), [])
  t.same(parentFolders('/a:/b'), ['/a', '/b'])
})
