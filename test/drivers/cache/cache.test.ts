import assert from 'node:assert/strict'

import fc from 'fast-check'
import t from 'tap'

import { cache, CacheDevice } from '../../../drivers/cache/cache.ts'
import { RamDevice } from '../../../drivers/ram.ts'
import { openContext } from '../open-context.ts'
import { RecordingDevice } from '../recording-device.ts'
import { TwoStepDevice } from './two-step-device.ts'

const PAGE = 64

function cached(below: RecordingDevice, pages = 16): CacheDevice {
  return new CacheDevice(below, { memory: pages * PAGE, page: PAGE })
}

async function readText(device: CacheDevice, at: number, length: number): Promise<string> {
  const into = Buffer.alloc(length, 0xee)
  await device.read(into, at)
  return into.toString('latin1')
}

void t.test('what was read is read from memory, at once', async (t) => {
  const below = new RecordingDevice({ size: 1024, later: true })
  below.bytes.write('hello', 70)
  const device = cached(below)
  t.equal(await readText(device, 70, 5), 'hello')
  t.strictSame(below.calls, [`read 64+64`], 'a whole page')
  const again = Buffer.alloc(3)
  t.equal(device.read(again, 71), undefined, 'without a promise')
  t.equal(again.toString(), 'ell')
  t.equal(below.calls.length, 1)
})

void t.test('a read over several pages fetches those that are missing', async (t) => {
  const below = new RecordingDevice({ size: 1000, later: true })
  const device = cached(below)
  await readText(device, 100, 10)
  await readText(device, 0, 200)
  t.strictSame(below.calls, ['read 64+64', 'read 0+64', 'read 128+64', 'read 192+64'])
  await readText(device, 990, 10)
  t.equal(below.calls.at(-1), 'read 960+40', 'the last page ends with the disk')
})

void t.test('requests for one page wait for one fetch', async (t) => {
  const below = new RecordingDevice({ size: 1024, later: true })
  below.bytes.write('abc', 0)
  const device = cached(below)
  const texts = await Promise.all([0, 1, 2].map((at) => readText(device, at, 1)))
  t.strictSame(texts, ['a', 'b', 'c'])
  t.strictSame(below.calls, ['read 0+64'])
})

for (const [what, change] of [
  ['write', (device: CacheDevice) => device.write(Buffer.from('new!!'), 62, 0)],
  ['zero', (device: CacheDevice) => device.zero(62, 5, 0)],
  ['trim', (device: CacheDevice) => device.trim(62, 5, 0)],
] as const) {
  void t.test(`a ${what} forgets the pages that it touches and no others`, async (t) => {
    const below = new RecordingDevice({ size: 1024, later: true })
    const device = cached(below)
    await readText(device, 0, 256)
    await change(device)
    below.calls.length = 0
    await readText(device, 0, 256)
    t.strictSame(below.calls, ['read 0+64', 'read 64+64'])
  })
}

void t.test('memory stays within the limit, and the page not used for longest goes', async (t) => {
  const below = new RecordingDevice({ size: 64 * PAGE, later: true })
  const device = cached(below, 4)
  for (const page of [0, 1, 2, 3, 0, 4]) await readText(device, page * PAGE, 1)
  t.equal(device.bytesHeld, 4 * PAGE)
  below.calls.length = 0
  for (const page of [0, 2, 3, 4, 1]) await readText(device, page * PAGE, 1)
  t.strictSame(below.calls, ['read 64+64'])
})

void t.test('when fetches alone fill the memory, further reads go without', async (t) => {
  const below = new RecordingDevice({ size: 64 * PAGE, later: true })
  const device = cached(below, 4)
  await Promise.all(Array.from({ length: 9 }, (_, page) => readText(device, page * PAGE + 3, 2)))
  t.strictSame(below.calls.slice(3, 6), ['read 192+64', 'read 259+2', 'read 323+2'])
  t.equal(device.bytesHeld, 4 * PAGE)
})

void t.test('a read that would push out everything else goes past the cache', async (t) => {
  const below = new RecordingDevice({ size: 64 * PAGE, later: true })
  const device = cached(below, 16)
  await readText(device, 3, 5 * PAGE)
  t.strictSame(below.calls, [`read 3+${5 * PAGE}`])
  t.equal(device.bytesHeld, 0)
})

void t.test('a page that cannot be read fails only those who want the broken part', async (t) => {
  for (const later of [false, true]) {
    const below = new RecordingDevice({ size: 1024, later })
    below.bytes.fill(0x61)
    const read = below.read.bind(below)
    below.read = (into, at) => {
      const broken = at <= 100 && 100 < at + into.length
      if (broken && !later) throw new Error('bad sector')
      return broken
        ? below.gate.then(() => Promise.reject(new Error('bad sector')))
        : read(into, at)
    }
    const device = cached(below)
    t.equal(await readText(device, 64, 8), 'aaaaaaaa')
    await t.rejects(readText(device, 99, 2), /bad sector/)
    await t.rejects(readText(device, 0, 256), /bad sector/)
    t.equal(device.bytesHeld, 3 * PAGE, 'the others are kept')
  }
})

void t.test('a resize forgets everything', async (t) => {
  const below = new RecordingDevice({ size: 1000, later: true })
  const device = cached(below)
  await readText(device, 970, 30)
  await device.resize(2000)
  below.bytes.write('grown', 1000)
  t.equal(await readText(device, 1000, 5), 'grown')
})

type Action =
  | { readonly kind: 'read'; readonly at: number; readonly length: number }
  | { readonly kind: 'write' | 'zero' | 'trim'; readonly at: number; readonly length: number }
  | { readonly kind: 'step'; readonly which: number; readonly how: number }

const SIZE = 300
const range = fc
  .tuple(fc.nat(SIZE - 1), fc.integer({ min: 1, max: 70 }))
  .map(([at, length]) => ({ at, length: Math.min(length, SIZE - at) }))
const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 4, arbitrary: range.map((place) => ({ kind: 'read' as const, ...place })) },
  {
    weight: 3,
    arbitrary: fc
      .tuple(fc.constantFrom('write' as const, 'zero' as const, 'trim' as const), range)
      .map(([kind, place]) => ({ kind, ...place })),
  },
  {
    weight: 12,
    arbitrary: fc.record({
      kind: fc.constant('step' as const),
      which: fc.nat(99),
      how: fc.nat(99),
    }),
  },
)

void t.test(
  'whatever overlaps and fails, a read sees what the disk held while it was under way',
  async (t) => {
    let fromMemory = 0
    await fc.assert(
      fc.asyncProperty(
        fc.array(action, { minLength: 50, maxLength: 250, size: 'max' }),
        async (actions) => {
          const below = new TwoStepDevice(SIZE)
          const device = new CacheDevice(below, { memory: 8 * 32, page: 32 })
          let value = 0
          const reads = new Set<{ at: number; length: number; held: Buffer[] }>()
          below.onChange = () => {
            for (const read of reads) read.held.push(part(below.content, read))
          }
          const failures: string[] = []
          const running: Promise<void>[] = []
          const ignore = (request: void | Promise<void>): void => {
            if (request !== undefined) running.push(request.catch(() => undefined))
          }
          const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
          const perform = (one: Action): void => {
            switch (one.kind) {
              case 'step':
                return below.step(one.which, one.how)
              case 'write':
                value = (value % 255) + 1
                return ignore(device.write(Buffer.alloc(one.length, value), one.at, 0))
              case 'zero':
                return ignore(device.zero(one.at, one.length, 0))
              case 'trim':
                return ignore(device.trim(one.at, one.length, 0))
              case 'read': {
                const { at, length } = one
                const read = { at, length, held: [part(below.content, one)] }
                reads.add(read)
                const into = Buffer.alloc(length, 0xee)
                const judge = (): void => {
                  reads.delete(read)
                  const wrong = into.findIndex(
                    (byte, index) => !read.held.some((was) => was[index] === byte),
                  )
                  if (wrong !== -1)
                    failures.push(`byte ${at + wrong} was never ${into[wrong] ?? -1}`)
                }
                const reading = device.read(into, at)
                if (reading === undefined) {
                  fromMemory += 1
                  judge()
                } else
                  running.push(reading.then(judge, () => reads.delete(read)).then(() => undefined))
              }
            }
          }
          for (const one of actions) {
            perform(one)
            await settle()
            assert.ok(device.bytesHeld <= 8 * 32)
          }
          while (below.inFlight > 0) {
            below.step(0, 1)
            await settle()
          }
          await Promise.all(running)
          assert.deepEqual(failures, [])
        },
      ),
      { numRuns: 200 },
    )
    t.ok(fromMemory > 50, `${fromMemory} reads were answered from memory`)
  },
)

function part(content: Buffer, { at, length }: { at: number; length: number }): Buffer {
  return Buffer.from(content.subarray(at, at + length))
}

const open = (target: string, settings: Record<string, string> = {}, min = 512): unknown =>
  cache.open(
    { driver: 'cache', target, settings: new Map(Object.entries(settings)) },
    new RecordingDevice({ min, max: 1 << 20 }),
    openContext(),
  )

void t.test('memory and pages must fit each other and the disk', async (t) => {
  t.ok((await open('64M')) instanceof CacheDevice)
  t.ok((await open('64K', { page: '4K' })) instanceof CacheDevice)
  t.throws(() => open('lots'), { code: 'INVALID' })
  t.throws(() => open('512K'), { code: 'INVALID', message: /16 pages of 64 KiB/ })
  t.throws(() => open('64M', { page: '48K' }), { code: 'INVALID', message: /power of two/ })
  t.throws(() => open('64M', { page: '2M' }), { code: 'INVALID' }, 'larger than one request')
  t.throws(() => open('64M', { page: '4K' }, 8192), { code: 'INVALID' }, 'less than a block')
})

void t.test('the content of a disk below that answers at once is kept as well', (t) => {
  const below = new RamDevice(4096)
  below.write(Buffer.from('ram'), 10)
  const device = new CacheDevice(below, { memory: 16 * PAGE, page: PAGE })
  const into = Buffer.alloc(3)
  t.equal(device.read(into, 10), undefined)
  t.equal(into.toString(), 'ram')
  t.equal(device.bytesHeld, PAGE)
  t.end()
})
