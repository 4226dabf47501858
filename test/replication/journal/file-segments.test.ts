import { readdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'

import t from 'tap'

import { openFileSegments } from '../../../replication/journal/file-segments.ts'
import { tempDirectory } from '../../support/scope.ts'

void t.test(
  'segments are files that only their owner reads, in a folder made for them',
  async (t) => {
    const folder = path.join(await tempDirectory(t), 'state', 'group-vm')
    const store = await openFileSegments(folder)
    t.equal((await stat(folder)).mode & 0o777, 0o700)
    t.same(await store.list(), [])
    for (const number of [2, 10, 1]) {
      const file = await store.create(number)
      await file.append([Buffer.from('one '), Buffer.from(`of ${number}`)])
      await file.append([Buffer.from('!')])
      await file.sync()
      await file.close()
    }
    await writeFile(path.join(folder, 'journal-notes.txt'), 'not ours')
    t.same(await store.list(), [1, 2, 10])
    const into = Buffer.alloc(100)
    t.equal(await store.read(10, 4, into), 6)
    t.equal(into.toString('utf8', 0, 6), 'of 10!')
    const again = await store.create(10)
    await again.close()
    t.equal(await store.read(10, 0, into), 0, 'a segment that is begun again is empty')
    await store.remove(1)
    await store.remove(1)
    t.same(await store.list(), [2, 10])
    t.equal((await stat(path.join(folder, 'journal-00000002.seg'))).mode & 0o777, 0o600)
    await store.close()
    t.same((await readdir(folder)).sort(), [
      'journal-00000002.seg',
      'journal-00000010.seg',
      'journal-notes.txt',
    ])
  },
)

void t.test('a folder has one user at a time', async (t) => {
  const folder = await tempDirectory(t)
  const store = await openFileSegments(folder)
  await t.rejects(openFileSegments(folder), { code: 'IN_USE', message: /lock of the journal/ })
  await store.close()
  await (await openFileSegments(folder)).close()
})

void t.test('what cannot be read or made is a fault with its place', async (t) => {
  const parent = await tempDirectory(t)
  const file = path.join(parent, 'file')
  await writeFile(file, '')
  await t.rejects(openFileSegments(path.join(file, 'folder')), {
    code: 'IO',
    where: path.join(file, 'folder'),
    remedy: /--state-dir/,
  })
  const store = await openFileSegments(path.join(parent, 'folder'))
  t.teardown(() => store.close())
  await t.rejects(async () => store.read(7, 0, Buffer.alloc(1)), { code: 'IO', where: store.place })
})
