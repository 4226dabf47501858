import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs'
import { readdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'

import t from 'tap'

import { makePrivateFifo } from '../../net/private-fifo.ts'
import { tempDirectory } from '../support/scope.ts'

void t.test('the FIFO is the owner’s alone, and its name goes with it', async (t) => {
  const folder = await tempDirectory(t)
  const at = path.join(folder, 'f')
  const umask = process.umask(0)
  t.teardown(() => process.umask(umask))
  const fifo = await makePrivateFifo(at, 'test FIFO')
  const found = await stat(at)
  t.ok(found.isFIFO())
  t.equal(found.mode & 0o777, 0o600)
  t.same(await readdir(folder), ['f'], 'nothing else is left')
  await fifo.unlink()
  closeSync(fifo.fd)
  t.same(await readdir(folder), [])
})

void t.test('neither reading nor writing waits for somebody else', async (t) => {
  const at = path.join(await tempDirectory(t), 'f')
  const fifo = await makePrivateFifo(at, 'test FIFO')
  t.throws(() => readSync(fifo.fd, Buffer.alloc(4)), { code: 'EAGAIN' })
  writeSync(fifo.fd, 'done')
  const reader = openSync(at, constants.O_RDONLY)
  const answer = Buffer.alloc(4)
  readSync(reader, answer)
  t.equal(answer.toString(), 'done', 'a late reader gets what was written')
  const full = Buffer.alloc(1 << 20)
  writeSync(fifo.fd, full)
  t.throws(() => writeSync(fifo.fd, full), { code: 'EAGAIN' })
  closeSync(reader)
  closeSync(fifo.fd)
})

void t.test('an old FIFO is replaced, whoever has it open; a file is left alone', async (t) => {
  const folder = await tempDirectory(t)
  const at = path.join(folder, 'f')
  const old = await makePrivateFifo(at, 'test FIFO')
  const fifo = await makePrivateFifo(at, 'test FIFO')
  writeSync(old.fd, 'old')
  t.throws(() => readSync(fifo.fd, Buffer.alloc(4)), { code: 'EAGAIN' })
  await old.unlink()
  t.ok((await stat(at)).isFIFO(), 'only its own name is removed')
  closeSync(old.fd)
  closeSync(fifo.fd)

  const file = path.join(folder, 'file')
  await writeFile(file, 'precious')
  await t.rejects(makePrivateFifo(file, 'test FIFO'), { code: 'IN_USE', message: /something else/ })
  await t.rejects(makePrivateFifo(path.join(folder, 'no', 'f'), 'test FIFO'), {
    code: 'IO',
    message: /cannot listen on the test FIFO/,
  })
  t.same((await readdir(folder)).sort(), ['f', 'file'])
})
