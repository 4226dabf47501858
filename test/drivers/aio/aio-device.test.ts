import { execFileSync } from 'node:child_process'
import * as fs from 'node:fs'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { FAST_ZERO, FUA, NO_HOLE, type BlockDevice } from '../../../core/block-device.ts'
import { SILENT } from '../../../core/logger.ts'
import { openImageFile, type ImageFileOptions } from '../../../drivers/aio/aio.ts'
import { pattern } from '../device-model.ts'

const KiB = 1024
const MiB = 1024 * KiB

interface Opened {
  readonly disk: BlockDevice
  readonly path: string
}

async function open(t: Test, size: number, more: Partial<ImageFileOptions> = {}): Promise<Opened> {
  const path = join(t.testdir(), 'image')
  fs.writeFileSync(path, pattern(size, 1))
  const disk = await openImageFile(path, { readOnly: false, logger: SILENT, threads: 1, ...more })
  t.teardown(() => disk.close())
  return { disk, path }
}

/** Bytes on disk, not counting what is not written out yet. */
function allocated(path: string): number {
  return fs.statSync(path).blocks * 512
}

/** Bytes in the page cache. */
function resident(path: string): number {
  return Number(execFileSync('fincore', ['--bytes', '--noheadings', '--output=RES', path]))
}

async function outcome(request: () => unknown): Promise<unknown> {
  try {
    return await request()
  } catch (error) {
    return error
  }
}

void t.test('what the page cache has is read at once, without a promise', async (t) => {
  const { disk } = await open(t, 64 * KiB)
  const into = Buffer.alloc(4096)
  t.equal(disk.read(into, 8192), undefined)
  t.ok(into.equals(pattern(64 * KiB, 1).subarray(8192, 12288)))
})

void t.test('what the page cache has not comes from a thread', async (t) => {
  const { disk, path } = await open(t, 4 * MiB)
  await disk.flush()
  execFileSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0', 'status=none'])
  const into = Buffer.alloc(4 * MiB)
  await disk.read(into, 0)
  t.ok(into.equals(pattern(4 * MiB, 1)))
})

void t.test('what is prepared is then read at once', async (t) => {
  const { disk, path } = await open(t, 256 * KiB)
  await disk.flush()
  execFileSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0', 'status=none'])
  t.equal(resident(path), 0)
  t.equal(disk.can.cache, true)
  await disk.cache?.(0, 256 * KiB)
  // The kernel reads in its own time; nobody else does meanwhile.
  while (resident(path) < 256 * KiB) await new Promise(setImmediate)
  const into = Buffer.alloc(256 * KiB)
  t.equal(disk.read(into, 0), undefined)
  t.ok(into.equals(pattern(256 * KiB, 1)))
})

for (const native of [true, false]) {
  const how = native ? 'with native calls' : 'without native calls'

  void t.test(`memory of every kind is read into and written from, ${how}`, async (t) => {
    const { disk } = await open(t, 2 * MiB, { native })
    const shared = new SharedArrayBuffer(1 * MiB)
    const kinds = [
      Buffer.alloc(16),
      Buffer.alloc(1 * MiB),
      Buffer.from(shared, 4096, 8192),
      Buffer.from(shared, 3, 77),
      Buffer.from(new Uint8Array(40)),
    ]
    for (const [index, bytes] of kinds.entries()) {
      const content = pattern(bytes.length, index + 7)
      content.copy(bytes)
      await disk.write(bytes, 1000, 0)
      t.ok(bytes.equals(content), 'a write leaves its buffer alone')
      bytes.fill(0)
      await disk.read(bytes, 1000)
      t.ok(bytes.equals(content), `${bytes.length} bytes`)
    }
  })

  void t.test(`more requests than the ring holds are all served, ${how}`, async (t) => {
    const { disk } = await open(t, 1 * MiB, { native, threads: 3 })
    const writes = Array.from({ length: 1000 }, async (_, index) =>
      disk.write(Buffer.alloc(1000, (index % 255) + 1), index * 1000, 0),
    )
    await Promise.all(writes)
    const all = Buffer.alloc(1_000_000)
    await disk.read(all, 0)
    for (let index = 0; index < 1000; index += 1) {
      const expected = Buffer.alloc(1000, (index % 255) + 1)
      if (!all.subarray(index * 1000, index * 1000 + 1000).equals(expected)) t.fail(`part ${index}`)
    }
    t.pass('all are there')
  })
}

void t.test('trimmed and zeroed space goes back to the file system', async (t) => {
  const { disk, path } = await open(t, 4 * MiB)
  t.match(disk.can, { trim: true, zero: true, fastZero: true, status: true })
  await disk.flush()
  const before = allocated(path)
  await disk.trim(1 * MiB, 1 * MiB, 0)
  await disk.zero(2 * MiB, 1 * MiB, FAST_ZERO)
  await disk.flush()
  t.ok(allocated(path) <= before - 2 * MiB)
  t.equal(fs.statSync(path).size, 4 * MiB)
  t.strictSame(await disk.status(0, 4 * MiB), [
    { at: 0, length: 1 * MiB, kind: 'data' },
    { at: 1 * MiB, length: 2 * MiB, kind: 'hole' },
    { at: 3 * MiB, length: 1 * MiB, kind: 'data' },
  ])
  await disk.zero(0, 1 * MiB, NO_HOLE | FUA)
  t.ok(allocated(path) >= before - 2 * MiB, 'no hole means allocated')
})

void t.test('discard=ignore keeps the space', async (t) => {
  const { disk, path } = await open(t, 4 * MiB, { discard: 'ignore' })
  t.match(disk.can, { trim: false, zero: true })
  await disk.flush()
  const before = allocated(path)
  await disk.trim(0, 1 * MiB, 0)
  await disk.zero(1 * MiB, 1 * MiB, 0)
  await disk.flush()
  t.ok(allocated(path) >= before)
})

void t.test('without native calls, nothing is promised that needs them', async (t) => {
  const { disk } = await open(t, 1 * MiB, { native: false })
  t.match(disk.can, {
    ...{ trim: false, fastZero: false, status: false, cache: false },
    ...{ zero: true, flush: true },
  })
  await disk.zero(5, 100 * KiB, 0)
  const into = Buffer.alloc(100 * KiB + 10)
  await disk.read(into, 0)
  t.ok(into.subarray(5, 5 + 100 * KiB).every((byte) => byte === 0))
  t.ok(into.subarray(0, 5).every((byte) => byte !== 0))
  t.ok(into.subarray(5 + 100 * KiB).every((byte) => byte !== 0))
  t.match(await outcome(() => disk.zero(0, 1, FAST_ZERO)), { code: 'NOT_SUPPORTED' })
})

void t.test('a read-only image changes nothing and can be flushed', async (t) => {
  const { disk } = await open(t, 64 * KiB, { readOnly: true })
  t.match(disk.can, { trim: false, zero: false, resize: false })
  t.equal(disk.geometry.readOnly, true)
  await disk.flush()
  await t.rejects(disk.resize(1), { code: 'NOT_SUPPORTED' })
})

void t.test('what somebody cut off is an error, not zeroes', async (t) => {
  for (const native of [true, false]) {
    const { disk, path } = await open(t, 64 * KiB, { native })
    fs.truncateSync(path, 6000)
    t.match(await outcome(() => disk.read(Buffer.alloc(4096), 4096)), {
      code: 'IO',
      message: /somebody truncated it.*image at byte 6000/,
    })
    const into = Buffer.alloc(1000)
    await disk.read(into, 5000)
    t.ok(into.equals(pattern(6000, 1).subarray(5000)), 'the rest is served')
    await disk.close()
  }
})

void t.test('flushes asked together are answered together', async (t) => {
  const { disk } = await open(t, 64 * KiB)
  await disk.write(pattern(4096, 9), 0, 0)
  await Promise.all([disk.flush(), disk.flush(), disk.write(pattern(512, 3), 512, FUA)])
  await Promise.all([disk.write(pattern(512, 4), 512, FUA), disk.flush(), disk.flush()])
  t.equal(disk.flush(), undefined, 'with nothing written since, there is nothing to wait for')
})

void t.test('the size of a file changes, and direct=on keeps it whole', async (t) => {
  const { disk, path } = await open(t, 64 * KiB, { direct: true })
  t.equal(disk.geometry.block.min, 4096)
  await disk.resize(128 * KiB)
  t.equal(disk.geometry.size, 128 * KiB)
  t.equal(fs.statSync(path).size, 128 * KiB)
  await t.rejects(disk.resize(5000), { code: 'INVALID', message: /multiple of 4096/ })
  await disk.resize(4096)
  t.equal(fs.statSync(path).size, 4096)
})

void t.test('close waits for what is under way', async (t) => {
  const { disk, path } = await open(t, 1 * MiB)
  const write = Promise.resolve(disk.write(Buffer.alloc(1 * MiB, 5), 0, FUA))
  const closed = disk.close()
  await Promise.all([write, closed])
  t.equal(disk.close(), closed)
  t.ok(fs.readFileSync(path).every((byte) => byte === 5))
})
