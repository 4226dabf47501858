import { execFileSync } from 'node:child_process'
import * as fs from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'

import t from 'tap'

import { SILENT } from '../../../core/logger.ts'
import { aio, openImageFile, type ImageFileOptions } from '../../../drivers/aio/aio.ts'
import { openPipeline } from '../../../drivers/open.ts'
import { openContext } from '../open-context.ts'

const options: ImageFileOptions = { readOnly: false, logger: SILENT }

/** What is in the way, made at `path`; the rest of the row is the fault that says so. */
const refused: readonly {
  readonly what: string
  readonly make: (path: string) => unknown
  readonly code: string
  readonly says: RegExp
  readonly options?: Partial<ImageFileOptions>
}[] = [
  {
    what: 'an image that is missing',
    make: () => undefined,
    code: 'NOT_FOUND',
    says: /does not exist.*create it: truncate -s 10G .*image/,
  },
  {
    what: 'a directory',
    make: (path) => fs.mkdirSync(path),
    code: 'INVALID',
    says: /is a directory/,
  },
  {
    what: 'a FIFO that nobody writes to',
    make: (path) => execFileSync('mkfifo', [path]),
    code: 'INVALID',
    says: /is a FIFO/,
  },
  {
    what: 'a link to a character device',
    make: (path) => fs.symlinkSync('/dev/zero', path),
    code: 'INVALID',
    says: /is a character device/,
  },
  {
    what: 'an empty file',
    make: (path) => fs.writeFileSync(path, ''),
    code: 'INVALID',
    says: /is empty.*truncate -s 10G/,
  },
  {
    what: 'a link that leads in a circle',
    make: (path) => fs.symlinkSync(path, path),
    code: 'IO',
    says: /cannot open the image.*ELOOP/,
  },
  {
    what: 'direct=on without native calls',
    make: (path) => fs.writeFileSync(path, Buffer.alloc(4096)),
    code: 'NOT_SUPPORTED',
    says: /direct=on needs native calls/,
    options: { direct: true, native: false },
  },
  {
    what: 'direct=on for an odd size',
    make: (path) => fs.writeFileSync(path, Buffer.alloc(4097)),
    code: 'INVALID',
    says: /4097 bytes.*multiple of 4096/,
    options: { direct: true },
  },
]

for (const { what, make, code, says, options: more } of refused) {
  void t.test(`${what} is refused with advice, and no descriptor stays open`, async (t) => {
    const path = join(t.testdir(), 'image')
    make(path)
    const opening = openImageFile(path, { ...options, ...more })
    await t.rejects(opening, { name: 'Fault', code, message: says })
    t.notOk(openPaths().includes(path))
  })
}

void t.test('a socket is refused', async (t) => {
  const path = join(t.testdir(), 's')
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(path, resolve))
  t.teardown(() => server.close())
  await t.rejects(openImageFile(path, options), { code: 'INVALID', message: /is a socket/ })
})

void t.test('a path through a file is refused', async (t) => {
  const path = join(t.testdir({ image: 'x' }), 'image', 'more')
  await t.rejects(openImageFile(path, options), { code: 'NOT_FOUND', message: /no directory/ })
})

void t.test('a path with a zero byte is refused', async (t) => {
  await t.rejects(openImageFile('/x\0y', options), { code: 'INVALID' })
})

void t.test('settings that make no sense are refused', async (t) => {
  const path = join(t.testdir({ image: 'x' }), 'image')
  for (const query of ['direct=maybe', 'discard=never', 'threads=0', 'threads=17']) {
    const opening = openPipeline(`aio:${path}?${query}`, [aio], openContext())
    await t.rejects(opening, { code: 'INVALID', message: new RegExp(query.split('=')[0] ?? '') })
  }
  t.notOk(openPaths().includes(path))
})

void t.test('an odd size is served to its last byte', async (t) => {
  const path = join(t.testdir({ image: 'x'.repeat(1001) }), 'image')
  const { device: disk } = await openPipeline(`aio:${path}`, [aio], openContext())
  t.teardown(() => disk.close())
  t.equal(disk.geometry.size, 1001)
  await disk.write(Buffer.from('yz'), 999, 0)
  const into = Buffer.alloc(3)
  await disk.read(into, 998)
  t.equal(into.toString(), 'xyz')
  t.equal(fs.statSync(path).size, 1001)
})

function openPaths(): string[] {
  return fs.readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [fs.readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      return []
    }
  })
}
