import { open } from 'node:fs/promises'

import t, { type Test } from 'tap'

import { FUA, type BlockDevice } from '../../../core/block-device.ts'
import { SILENT } from '../../../core/logger.ts'
import { AioDevice } from '../../../drivers/aio/aio-device.ts'
import { systemFault } from '../../../drivers/aio/io-fault.ts'
import { errno, loadNative } from '../../../drivers/aio/native.ts'

/** A disk over one of the kernel's devices that fail in a known way. */
async function over(t: Test, path: string, native: boolean): Promise<BlockDevice> {
  const handle = await open(path, 'r+')
  const disk = await AioDevice.over(
    {
      handle,
      size: 1024 * 1024,
      readOnly: false,
      logicalBlock: 0,
      directAlignment: 0,
      rotational: false,
      discards: false,
      zeroesFast: false,
    },
    {
      path,
      native: native ? loadNative() : undefined,
      logger: SILENT,
      unmap: true,
      threads: 1,
    },
  )
  t.teardown(() => disk.close())
  return disk
}

async function outcome(request: () => unknown): Promise<unknown> {
  try {
    return await request()
  } catch (error) {
    return error
  }
}

for (const native of [true, false]) {
  const how = native ? 'with native calls' : 'without native calls'

  void t.test(`a full disk says so, with the place, ${how}`, async (t) => {
    const disk = await over(t, '/dev/full', native)
    const full = { code: 'NO_SPACE', message: /write 512 bytes.*full.*\/dev\/full at byte 4096/ }
    t.match(await outcome(() => disk.write(Buffer.alloc(512), 4096, 0)), full)
    t.match(await outcome(() => disk.write(Buffer.alloc(512), 4096, FUA)), full)
    t.match(await outcome(() => disk.zero(0, 512, 0)), { code: 'NO_SPACE' })
    const into = Buffer.alloc(512, 1)
    await disk.read(into, 0)
    t.ok(
      into.every((byte) => byte === 0),
      'the disk serves on',
    )
  })

  void t.test(`after a flush has failed none succeeds, ${how}`, async (t) => {
    // Writing to /dev/null works; making it durable does not.
    const disk = await over(t, '/dev/null', native)
    await disk.write(Buffer.alloc(512), 0, 0)
    const lost = { code: 'IO', message: /writes that were acknowledged may be lost/ }
    const together = [disk.flush(), disk.flush()].map((flush) => outcome(() => flush))
    for (const flush of together) t.match(await flush, lost)
    t.match(await outcome(() => disk.flush()), lost)
    t.match(await outcome(() => disk.write(Buffer.alloc(512), 0, FUA)), lost)
    t.equal(await outcome(() => disk.write(Buffer.alloc(512), 0, 0)), undefined)
    t.match(await outcome(() => disk.flush()), lost)
  })
}

void t.test('errors of the system have the codes that say what they mean', (t) => {
  const codes = {
    ENOSPC: 'NO_SPACE',
    EDQUOT: 'NO_SPACE',
    EFBIG: 'NO_SPACE',
    EIO: 'IO',
    EACCES: 'NOT_PERMITTED',
    EPERM: 'NOT_PERMITTED',
    EROFS: 'NOT_PERMITTED',
    ENOMEM: 'NO_MEMORY',
    EOPNOTSUPP: 'NOT_SUPPORTED',
    EBADF: 'IO',
  } as const
  for (const [name, code] of Object.entries(codes)) {
    const fault = systemFault(-errno(name as keyof typeof codes), 'write', '/x at byte 7')
    t.equal(fault.code, code)
    t.match(fault.message, `(${name}): /x at byte 7`)
  }
  t.match(systemFault(-errno('EROFS'), 'open', '/x').message, '--read-only')
  t.end()
})
