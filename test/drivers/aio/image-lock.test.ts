import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import { join } from 'node:path'

import t from 'tap'

import { SILENT } from '../../../core/logger.ts'
import { openImageFile } from '../../../drivers/aio/aio.ts'
import { excludes, parseLocks } from '../../../drivers/aio/image-lock.ts'

function image(folder: string): string {
  const path = join(folder, 'image')
  fs.writeFileSync(path, Buffer.alloc(8192))
  return path
}

for (const native of [true, false]) {
  const how = native ? 'with native calls' : 'without native calls'

  void t.test(`an image has one writer or many readers, ${how}`, async (t) => {
    const path = image(t.testdir())
    const open = (readOnly: boolean) => openImageFile(path, { readOnly, native, logger: SILENT })
    const inUse = { code: 'IN_USE', message: /image is in use by .*image \(stop/ }
    const writer = await open(false)
    await t.rejects(open(false), inUse)
    await t.rejects(open(true), inUse)
    await writer.close()
    const readers = [await open(true), await open(true)]
    await t.rejects(open(false), inUse)
    for (const reader of readers) await reader.close()
    await (await open(false)).close()
  })

  void t.test(`the holder of an image is named, ${how}`, async (t) => {
    const path = image(t.testdir())
    const holder = spawn('flock', ['--no-fork', path, 'sh', '-c', 'echo held; read line'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    const ended = once(holder, 'exit')
    await once(holder.stdout, 'data')
    const opening = openImageFile(path, { readOnly: true, native, logger: SILENT })
    await t.rejects(opening, {
      code: 'IN_USE',
      message: new RegExp(`in use by process ${holder.pid ?? 0} \\(\\w+\\)`),
    })
    holder.stdin.end('\n')
    await ended
    await (await openImageFile(path, { readOnly: true, native, logger: SILENT })).close()
  })
}

void t.test('a second export in this process is told so', async (t) => {
  const path = image(t.testdir())
  const first = await openImageFile(path, { readOnly: false, logger: SILENT })
  t.teardown(() => first.close())
  const link = `${path}-link`
  fs.linkSync(path, link)
  const opening = openImageFile(link, { readOnly: false, logger: SILENT })
  await t.rejects(opening, { code: 'IN_USE', message: /by this process/ })
})

void t.test('QEMU and colotap keep each other out', async (t) => {
  const path = image(t.testdir())
  const disk = await openImageFile(path, { readOnly: false, logger: SILENT })
  const refused = spawnSync('qemu-io', ['-f', 'raw', '-c', 'read 0 512', path], {
    encoding: 'utf8',
  })
  t.match(refused.stderr, /Failed to get .*lock/)
  await disk.close()
  const qemu = spawn('qemu-io', ['-f', 'raw', path], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = once(qemu, 'exit')
  qemu.stdin.write('read 0 512\n')
  await once(qemu.stdout, 'data')
  await t.rejects(openImageFile(path, { readOnly: false, logger: SILENT }), {
    code: 'IN_USE',
    message: /QEMU/,
  })
  qemu.stdin.end('quit\n')
  await ended
  await (await openImageFile(path, { readOnly: false, logger: SILENT })).close()
})

void t.test('the kernel’s list of locks is read', (t) => {
  const text = [
    '1: OFDLCK ADVISORY  READ -1 fe:00:123 100 101',
    '1: -> POSIX  ADVISORY  WRITE 99 fe:00:123 0 EOF',
    '2: FLOCK  ADVISORY  WRITE 4711 fe:00:9 0 EOF',
    '3: POSIX  ADVISORY  WRITE 12 00:1c:7 5 5',
    'nonsense',
    '',
  ].join('\n')
  const everything = Number.POSITIVE_INFINITY
  t.strictSame(parseLocks(text), [
    { kind: 'OFDLCK', write: false, pid: -1, file: 'fe:00:123', start: 100, end: 101 },
    { kind: 'FLOCK', write: true, pid: 4711, file: 'fe:00:9', start: 0, end: everything },
    { kind: 'POSIX', write: true, pid: 12, file: '00:1c:7', start: 5, end: 5 },
  ])
  t.end()
})

const judged: readonly (readonly [
  what: string,
  kind: string,
  write: boolean,
  bytes: readonly [number, number],
  keepsOut: readonly string[],
])[] = [
  ['QEMU reading', 'OFDLCK', false, [100, 100], []],
  ['QEMU writing', 'OFDLCK', false, [101, 101], ['writer', 'reader']],
  ['QEMU not sharing writes', 'OFDLCK', false, [201, 201], ['writer']],
  ['QEMU not sharing reads', 'OFDLCK', false, [200, 201], ['writer', 'reader']],
  ['a POSIX write lock', 'POSIX', true, [0, 10], ['writer', 'reader']],
  ['a POSIX read lock on everything', 'POSIX', false, [0, Number.POSITIVE_INFINITY], ['writer']],
  ['a flock, about which flock decides', 'FLOCK', true, [0, Number.POSITIVE_INFINITY], []],
]

for (const [what, kind, write, [start, end], keepsOut] of judged) {
  void t.test(`${what} keeps out ${keepsOut.join(' and ') || 'nobody'}`, (t) => {
    const lock = { kind, write, pid: -1, file: '', start, end }
    t.equal(excludes(lock, false), keepsOut.includes('writer'))
    t.equal(excludes(lock, true), keepsOut.includes('reader'))
    t.end()
  })
}
