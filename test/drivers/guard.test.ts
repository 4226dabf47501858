import t from 'tap'

import { FAST_ZERO, FUA, NO_HOLE, type BlockDevice } from '../../core/block-device.ts'
import { Guard } from '../../drivers/guard.ts'
import { checkAgainstModel, pattern } from './device-model.ts'
import { RecordingDevice, type RecordingOptions } from './recording-device.ts'

function guarded(options: RecordingOptions = {}, readOnly = false): [Guard, RecordingDevice] {
  const below = new RecordingDevice(options)
  return [new Guard(below, readOnly), below]
}

/** Also where the request throws rather than rejects. */
async function outcome(request: () => unknown): Promise<unknown> {
  try {
    return await request()
  } catch (error) {
    return error
  }
}

const SIZE = 64 * 1024
const bytes = pattern(512, 1)

const refused: readonly (readonly [
  what: string,
  request: (disk: BlockDevice) => unknown,
  code: string,
])[] = [
  ['a read beyond the end', (disk) => disk.read(Buffer.alloc(512), SIZE - 511), 'INVALID'],
  ['a status beyond the end', (disk) => disk.status(0, SIZE + 1), 'INVALID'],
  ['a write beyond the end', (disk) => disk.write(bytes, SIZE - 511, 0), 'NO_SPACE'],
  ['zeroing beyond the end', (disk) => disk.zero(SIZE, 1, 0), 'NO_SPACE'],
  ['a trim beyond the end', (disk) => disk.trim(SIZE - 1, 2, 0), 'INVALID'],
  ['an offset below zero', (disk) => disk.read(Buffer.alloc(1), -1), 'INVALID'],
  ['an offset that is no whole number', (disk) => disk.read(Buffer.alloc(1), 0.5), 'INVALID'],
  ['a read of nothing', (disk) => disk.read(Buffer.alloc(0), 0), 'INVALID'],
  ['a write of nothing', (disk) => disk.write(Buffer.alloc(0), 0, 0), 'INVALID'],
  ['zeroing nothing', (disk) => disk.zero(0, 0, 0), 'INVALID'],
  ['an endless trim', (disk) => disk.trim(0, Number.POSITIVE_INFINITY, 0), 'INVALID'],
  ['preparing beyond the end', (disk) => disk.cache?.(SIZE, 1), 'INVALID'],
  ['preparing what cannot be', (disk) => disk.cache?.(0, 512), 'NOT_SUPPORTED'],
  ['a read that is too long', (disk) => disk.read(Buffer.alloc(8193), 0), 'INVALID'],
  ['a write that is too long', (disk) => disk.write(Buffer.alloc(8193), 0, 0), 'INVALID'],
  ['a size of nothing', (disk) => disk.resize(0), 'INVALID'],
  ['a size that is no whole number', (disk) => disk.resize(1.5), 'INVALID'],
]

for (const [what, request, code] of refused) {
  void t.test(`${what} is refused, and never reaches the device`, async (t) => {
    const [disk, below] = guarded({ max: 8192 })
    t.match(await outcome(() => request(disk)), { name: 'Fault', code })
    t.strictSame(below.calls, [])
  })
}

void t.test('a range to prepare grows to whole blocks', async (t) => {
  const [disk, below] = guarded({ min: 512, size: 4000, can: { cache: true } })
  await disk.cache(100, 1)
  await disk.cache(600, 1000)
  await disk.cache(3999, 1)
  t.strictSame(below.calls, ['cache 0+512', 'cache 512+1536', 'cache 3584+416'])
})

void t.test(
  'the maps of the device below are offered, and asked only within the disk',
  async (t) => {
    const below = new RecordingDevice()
    const asked: string[] = []
    below.maps = {
      dirty: (at, length) => {
        asked.push(`${at}+${length}`)
        return [{ at, length, value: 1 }]
      },
    }
    const disk = new Guard(below, false)
    t.strictSame(Object.keys(disk.maps), ['dirty'])
    t.strictSame(disk.maps.dirty?.(5, 10), [{ at: 5, length: 10, value: 1 }])
    for (const [at, length] of [
      [SIZE, 1],
      [0, SIZE + 1],
      [0, 0],
    ] as const)
      t.throws(() => disk.maps.dirty?.(at, length), { code: 'INVALID' })
    await disk.close()
    t.throws(() => disk.maps.dirty?.(0, 1), { code: 'SHUTDOWN' })
    t.strictSame(asked, ['5+10'])
    t.strictSame(Object.keys(guarded()[0].maps), [], 'and none where there is none')
  },
)

void t.test('a read-only disk refuses every change and serves the rest', async (t) => {
  for (const [disk, below] of [guarded({}, true), guarded({ readOnly: true })]) {
    const changes = [
      () => disk.write(bytes, 0, 0),
      () => disk.zero(0, 1, 0),
      () => disk.trim(0, 1, 0),
      () => disk.resize(1),
    ]
    for (const change of changes) t.match(await outcome(change), { code: 'NOT_PERMITTED' })
    t.strictSame(below.calls, [])
    t.equal(disk.geometry.readOnly, true)
    t.match(disk.can, { zero: false, trim: false, fastZero: false, resize: false, flush: true })
    t.equal(disk.read(Buffer.alloc(1), 0), undefined)
  }
})

void t.test('what a device answers at once is answered at once', (t) => {
  const [disk] = guarded()
  t.equal(disk.write(bytes, 3, FUA), undefined)
  const into = Buffer.alloc(512)
  t.equal(disk.read(into, 3), undefined)
  t.ok(into.equals(bytes))
  t.equal(disk.zero(0, 1, 0), undefined)
  t.equal(disk.trim(0, 1, 0), undefined)
  t.equal(disk.flush(), undefined)
  t.end()
})

void t.test('a device that cannot zero is written zeroes', async (t) => {
  for (const later of [false, true]) {
    const [disk, below] = guarded({ can: { zero: false }, max: 4096, later })
    t.equal(disk.can.zero, true)
    t.equal(disk.can.fastZero, false)
    below.bytes.fill(7)
    await disk.zero(100, 9000, NO_HOLE | FUA)
    t.strictSame(below.calls, ['write 100+3996 fua', 'write 4096+4096 fua', 'write 8192+908 fua'])
    t.ok(below.bytes.subarray(100, 9100).every((byte) => byte === 0))
    t.equal(below.bytes[99], 7)
    t.equal(below.bytes[9100], 7)
    t.match(await outcome(() => disk.zero(0, 1, FAST_ZERO)), { code: 'NOT_SUPPORTED' })
  }
})

void t.test('a trim that a device cannot do succeeds and does nothing', async (t) => {
  const [disk, below] = guarded({ can: { trim: false } })
  await disk.trim(0, 4096, 0)
  t.strictSame(below.calls, [])
})

void t.test('FUA is a flush afterwards where a device has nothing better', async (t) => {
  const [disk, below] = guarded({ can: { fua: false }, later: true })
  t.equal(disk.can.fua, true)
  await disk.write(bytes, 0, FUA)
  await disk.zero(0, 512, FUA | NO_HOLE)
  await disk.trim(0, 512, FUA)
  await disk.write(bytes, 0, 0)
  t.strictSame(below.calls, [
    'write 0+512',
    'flush',
    'zero 0+512 no-hole',
    'flush',
    'trim 0+512',
    'flush',
    'write 0+512',
  ])
})

void t.test('durability that a device does not have is not promised', async (t) => {
  const [disk, below] = guarded({ can: { fua: false, flush: false } })
  t.equal(disk.can.fua, false)
  for (const request of [() => disk.flush(), () => disk.write(bytes, 0, FUA)]) {
    t.match(await outcome(request), { code: 'NOT_SUPPORTED' })
  }
  t.strictSame(below.calls, [])
})

void t.test('status of a device that knows none is data', async (t) => {
  const [disk] = guarded({ can: { status: false } })
  t.strictSame(await disk.status(3, 10), [{ at: 3, length: 10, kind: 'data' }])
})

void t.test('a device of whole blocks serves any alignment', async (t) => {
  for (const later of [false, true]) {
    for (const can of [{}, { zero: false }]) {
      const size = 10 * 512 + 100
      const [disk, below] = guarded({ size, min: 512, can: { ...can, resize: false }, later })
      t.equal(disk.geometry.block.min, 1)
      await checkAgainstModel(disk, { size, unit: 1, runs: 60 })
      t.ok(below.calls.length > 0)
    }
  }
})

void t.test('an aligned request passes as it is', async (t) => {
  const [disk, below] = guarded({ size: 4096 + 100, min: 512 })
  await disk.write(pattern(1024, 1), 512, FUA)
  await disk.write(pattern(100, 1), 4096, 0)
  await disk.read(Buffer.alloc(612), 4096 - 512)
  await disk.zero(0, 512, FAST_ZERO)
  t.strictSame(below.calls, [
    'write 512+1024 fua',
    'write 4096+100',
    'read 3584+612',
    'zero 0+512 fast',
  ])
})

void t.test('a trim touches no byte outside its range', async (t) => {
  const [disk, below] = guarded({ min: 512 })
  await disk.trim(100, 300, 0)
  await disk.trim(100, 1500, 0)
  await disk.trim(SIZE - 600, 600, 0)
  t.strictSame(below.calls, ['trim 512+1024', `trim ${SIZE - 512}+512`])
})

void t.test('writes to parts of one block at the same time are all kept', async (t) => {
  const [disk, below] = guarded({ min: 512, later: true })
  const parts = Array.from({ length: 16 }, (_, index) => index)
  await Promise.all([
    ...parts.map((index) => disk.write(Buffer.alloc(32, index + 1), index * 32, 0)),
    disk.write(Buffer.alloc(512, 99), 512, 0),
  ])
  for (const index of parts) {
    const part = below.bytes.subarray(index * 32, index * 32 + 32)
    t.ok(
      part.every((byte) => byte === index + 1),
      `part ${index} is there`,
    )
  }
})

void t.test(
  'an aligned write is not undone by a neighbour that reads, changes and writes',
  async (t) => {
    const [disk, below] = guarded({ min: 512, later: true })
    await Promise.all([
      disk.write(Buffer.alloc(8, 2), 508, 0), // reads the blocks first
      disk.write(Buffer.alloc(512, 1), 0, 0),
      disk.zero(1030, 4, 0),
      disk.write(Buffer.alloc(1024, 3), 1024, 0),
    ])
    // Where two requests overlap either may win; all other bytes have one right value.
    t.ok(below.bytes.subarray(0, 508).every((byte) => byte === 1))
    t.ok(below.bytes.subarray(512, 516).every((byte) => byte === 2))
    t.ok(below.bytes.subarray(1034, 2048).every((byte) => byte === 3))
  },
)

void t.test(
  'close waits for requests in flight, refuses later ones, and closes once',
  async (t) => {
    const [disk, below] = guarded({ later: true })
    let open = (): void => undefined
    below.gate = new Promise((resolve) => (open = resolve))
    const write = disk.write(bytes, 0, 0)
    const failing = disk.read(Buffer.alloc(1), 0)
    const closed = disk.close()
    t.equal(disk.close(), closed)
    for (const request of [
      () => disk.read(Buffer.alloc(1), 0),
      () => disk.write(bytes, 0, 0),
      () => disk.flush(),
      () => disk.resize(1),
    ]) {
      t.match(await outcome(request), { code: 'SHUTDOWN' })
    }
    t.notOk(below.calls.includes('close'))
    open()
    await Promise.all([write, failing, closed])
    t.equal(below.calls.filter((call) => call === 'close').length, 1)
  },
)

void t.test('the size changes while nothing is in flight, and later requests see it', async (t) => {
  const [disk, below] = guarded({ later: true })
  let open = (): void => undefined
  below.gate = new Promise((resolve) => (open = resolve))
  const early = disk.write(bytes, SIZE - 512, 0)
  const resized = disk.resize(1024)
  const late = outcome(() => disk.write(bytes, SIZE - 512, 0))
  t.strictSame(below.calls, [`write ${SIZE - 512}+512`])
  open()
  await Promise.all([early, resized])
  t.equal(disk.geometry.size, 1024)
  t.match(await late, { code: 'NO_SPACE' })
  await disk.resize(4096)
  await disk.write(bytes, 2048, 0)
  t.equal(disk.geometry.size, 4096)
})
