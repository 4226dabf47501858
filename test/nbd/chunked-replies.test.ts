/** Structured and extended replies: the same rules, two forms of header. */

import t from 'tap'

import type { Extent } from '../../core/block-device.ts'
import { Fault } from '../../core/fault.ts'
import { KiB, MiB } from '../../core/units.ts'
import { stage, until } from './harness.ts'
import { ALL_CAPABILITIES, MemoryDevice, type AnswerMode } from './memory-device.ts'
import {
  BLOCK_STATUS,
  CACHE,
  CHUNKED,
  DF,
  FLUSH,
  READ,
  REQ_ONE,
  TRIM,
  WRITE,
  WRITE_ZEROES,
  answer,
  ask,
  chunkOption,
  errorOf,
  reply,
  setContexts,
} from './wire.ts'

const MODES: AnswerMode[] = ['inline', 'async']

/** data, hole, zeroes, data: each a quarter of the disk. */
function sparseDevice(): MemoryDevice {
  const device = new MemoryDevice(4 * MiB)
  device.can = { ...ALL_CAPABILITIES, status: true, cache: true }
  device.extents = [
    { at: 0, length: 1 * MiB, kind: 'data' },
    { at: 1 * MiB, length: 1 * MiB, kind: 'hole' },
    { at: 2 * MiB, length: 1 * MiB, kind: 'zero' },
    { at: 3 * MiB, length: 1 * MiB, kind: 'data' },
  ]
  device.bytes.fill('a', 0, 1 * MiB).fill('b', 3 * MiB)
  return device
}

for (const form of CHUNKED) {
  for (const mode of MODES) {
    void t.test(`reads of any length are one data chunk (${form}, ${mode})`, async (t) => {
      const { device, rawAttached } = await stage(t)
      device.mode = mode
      device.bytes.forEach((_, at) => (device.bytes[at] = at % 251))
      const raw = await rawAttached(chunkOption(form))
      const lengths = [1, 511, 4 * KiB, 16 * KiB, 32 * KiB, 32 * KiB + 1, 64 * KiB, 1 * MiB]
      for (const [index, length] of lengths.entries()) {
        raw.send(ask(form, READ, index + 2 ** 40, 77, length))
        const [chunk, ...more] = await reply(raw, form)
        t.equal(more.length, 0)
        t.equal(chunk?.cookie, BigInt(index + 2 ** 40))
        t.equal(chunk?.offset, form === 'extended' ? 77n : undefined)
        t.ok(chunk?.content.what === 'data' && chunk.content.at === 77, `${length} bytes`)
        if (chunk?.content.what === 'data')
          t.ok(chunk.content.data.equals(device.bytes.subarray(77, 77 + length)))
      }
    })

    void t.test(`holes and zeroes of a large read take no bytes (${form}, ${mode})`, async (t) => {
      const { device, rawAttached } = await stage(t, { device: sparseDevice() })
      device.mode = mode
      const raw = await rawAttached(chunkOption(form))
      raw.send(ask(form, READ, 1, 512 * KiB, 3 * MiB))
      const [first, hole, last, ...more] = await answer(raw, form)
      t.equal(more.length, 0)
      t.ok(first?.what === 'data' && first.at === 512 * KiB)
      t.ok(first?.what === 'data' && first.data.equals(Buffer.alloc(512 * KiB, 'a')))
      t.strictSame(hole, { what: 'hole', at: 1 * MiB, length: 2 * MiB })
      t.ok(last?.what === 'data' && last.at === 3 * MiB)
      t.ok(last?.what === 'data' && last.data.equals(Buffer.alloc(512 * KiB, 'b')))

      raw.send(ask(form, READ, 1, 1 * MiB, 2 * MiB))
      t.strictSame(await answer(raw, form), [{ what: 'hole', at: 1 * MiB, length: 2 * MiB }])
    })

    void t.test(`with DF a read is one chunk, zeroes and all (${form}, ${mode})`, async (t) => {
      const { device, rawAttached } = await stage(t, { device: sparseDevice() })
      device.mode = mode
      const raw = await rawAttached(chunkOption(form))
      raw.send(ask(form, READ, 1, 0, 4 * MiB, DF))
      const [chunk, ...more] = await answer(raw, form)
      t.equal(more.length, 0)
      t.ok(chunk?.what === 'data' && chunk.data.equals(device.bytes))
    })

    void t.test(
      `a failure says why in words, and keeps the stream (${form}, ${mode})`,
      async (t) => {
        const { device, rawAttached } = await stage(t, { device: sparseDevice() })
        device.mode = mode
        const raw = await rawAttached(chunkOption(form), setContexts('disk', 'base:allocation'))
        const requests: [string, Buffer[]][] = [
          ['a read', [ask(form, READ, 1, 0, 100)]],
          ['a large read', [ask(form, READ, 1, 0, 4 * MiB)]],
          ['a write', [ask(form, WRITE, 1, 0, 5), Buffer.from('hello')]],
          ['a flush', [ask(form, FLUSH, 1, 0, 0)]],
          ['a trim', [ask(form, TRIM, 1, 0, 512)]],
          ['zeroes', [ask(form, WRITE_ZEROES, 1, 0, 512)]],
          ['a cache', [ask(form, CACHE, 1, 0, 512)]],
          ['a status', [ask(form, BLOCK_STATUS, 1, 0, 512)]],
        ]
        for (const [what, bytes] of requests) {
          device.failure = new Fault('IO', 'the platter cracked', { where: '/srv/secret.img' })
          raw.send(...bytes)
          const content = [{ what: 'error', error: 5, message: 'the platter cracked' }]
          t.strictSame(await answer(raw, form), content, `${what}: nothing of where it happened`)
          device.failure = undefined
          raw.send(...bytes)
          t.equal(await errorOf(raw, form), 0, `${what} succeeds later`)
        }
      },
    )
  }

  void t.test(`many reads of every kind in flight are answered each (${form})`, async (t) => {
    const { device, rawAttached } = await stage(t, { device: sparseDevice() })
    device.mode = 'async'
    const raw = await rawAttached(chunkOption(form))
    const asked = 500
    for (let cookie = 0; cookie < asked; cookie += 1)
      raw.send(ask(form, READ, cookie, 0, 1 + (cookie % 7) * 40 * KiB))
    const seen = new Set<bigint>()
    while (seen.size < asked) {
      const chunks = await reply(raw, form)
      const [first] = chunks
      if (first === undefined || seen.has(first.cookie)) t.fail('an answer twice')
      else seen.add(first.cookie)
      const length = 1 + (Number(first?.cookie) % 7) * 40 * KiB
      const { content } = first ?? {}
      if (content?.what !== 'data' || content.data.length !== length) t.fail('a wrong length')
    }
    t.equal(seen.size, asked)
  })

  void t.test(`a read of nothing is no data chunk, which may not be empty (${form})`, async (t) => {
    const { device, rawAttached } = await stage(t)
    const raw = await rawAttached(chunkOption(form))
    for (const type of [READ, TRIM, WRITE_ZEROES]) {
      raw.send(ask(form, type, 1, 0, 0))
      t.strictSame(await answer(raw, form), [{ what: 'none' }])
    }
    t.strictSame(device.calls, [])
  })

  void t.test(`successes without data are empty chunks (${form})`, async (t) => {
    const { device, rawAttached } = await stage(t, { device: sparseDevice() })
    const raw = await rawAttached(chunkOption(form))
    raw.send(ask(form, WRITE, 1, 0, 2), Buffer.from('hi'), ask(form, FLUSH, 2, 0, 0))
    raw.send(ask(form, TRIM, 3, 512, 512), ask(form, WRITE_ZEROES, 4, 1024, 512))
    raw.send(ask(form, CACHE, 5, 0, 4096))
    for (const cookie of [1n, 2n, 3n, 4n, 5n]) {
      const [chunk] = await reply(raw, form)
      t.strictSame([chunk?.cookie, chunk?.content], [cookie, { what: 'none' }])
    }
    t.strictSame(device.calls, [
      'write 0+2 flags=0',
      'flush 0+0 flags=0',
      'trim 512+512 flags=0',
      'zero 1024+512 flags=0',
      'cache 0+4096 flags=0',
    ])
  })

  void t.test(`what was not negotiated is refused with a reason (${form})`, async (t) => {
    const device = new MemoryDevice(64 * KiB)
    device.can = { ...ALL_CAPABILITIES, fua: false, fastZero: false, trim: false, flush: false }
    const { rawAttached } = await stage(t, { device })
    const raw = await rawAttached(chunkOption(form))
    const cases: [string, Buffer[]][] = [
      ['an unknown command', [ask(form, 9, 1, 0, 4096)]],
      ['RESIZE', [ask(form, 8, 1, 0, 4096)]],
      ['BLOCK_STATUS without a context', [ask(form, BLOCK_STATUS, 1, 0, 4096)]],
      ['CACHE', [ask(form, CACHE, 1, 0, 4096)]],
      ['TRIM', [ask(form, TRIM, 1, 0, 4096)]],
      ['FLUSH', [ask(form, FLUSH, 1, 0, 0)]],
      ['FUA', [ask(form, WRITE, 1, 0, 28, 1), Buffer.alloc(28)]],
      ['DF of WRITE', [ask(form, WRITE, 1, 0, 28, DF), Buffer.alloc(28)]],
      ['REQ_ONE of READ', [ask(form, READ, 1, 0, 28, REQ_ONE)]],
      ['FAST_ZERO', [ask(form, WRITE_ZEROES, 1, 0, 28, 16)]],
      ['NO_HOLE of TRIM', [ask(form, TRIM, 1, 0, 28, 2)]],
      ['an unknown flag', [ask(form, READ, 1, 0, 28, 0x4000)]],
      ['a READ over the maximum', [ask(form, READ, 1, 0, 32 * MiB + 1)]],
      [
        'a WRITE over the maximum',
        [ask(form, WRITE, 1, 0, 32 * MiB + 1), Buffer.alloc(32 * MiB + 1)],
      ],
    ]
    for (const [what, bytes] of cases) {
      raw.send(...bytes)
      const [content, ...more] = await answer(raw, form)
      t.equal(more.length, 0)
      t.ok(content?.what === 'error' && content.error === 22 && content.message !== '', what)
    }
    t.strictSame(device.calls, [])
    raw.send(ask(form, READ, 2, 0, 10))
    t.strictSame(await answer(raw, form), [{ what: 'data', at: 0, data: Buffer.alloc(10) }])
  })

  void t.test(`a FLUSH with an offset or a length is refused (${form})`, async (t) => {
    const { device, rawAttached } = await stage(t)
    const raw = await rawAttached(chunkOption(form))
    raw.send(ask(form, FLUSH, 1, 1, 0), ask(form, FLUSH, 2, 0, 1), ask(form, FLUSH, 3, 0, 0))
    t.strictSame([await errorOf(raw, form), await errorOf(raw, form)], [22, 22])
    t.equal(await errorOf(raw, form), 0)
    t.strictSame(device.calls, ['flush 0+0 flags=0'])
  })

  void t.test(`a server that closes answers ESHUTDOWN in chunks (${form})`, async (t) => {
    const { device, rawAttached, server } = await stage(t)
    device.mode = 'held'
    const raw = await rawAttached(chunkOption(form))
    raw.send(ask(form, READ, 1, 0, 4))
    await device.whenHeld(1)
    const closed = server.close()
    raw.send(ask(form, READ, 2, 0, 4))
    const [refused] = await reply(raw, form)
    t.ok(refused?.cookie === 2n && refused.content.what === 'error')
    t.ok(refused?.content.what === 'error' && refused.content.error === 108)
    device.release()
    t.strictSame(await answer(raw, form), [{ what: 'data', at: 0, data: Buffer.alloc(4) }])
    await Promise.all([closed, raw.closed])
  })

  void t.test(
    `a vanished client's sparse reads and statuses leave nothing behind (${form})`,
    async (t) => {
      const { device, rawAttached, server, pool } = await stage(t, { device: sparseDevice() })
      device.mode = 'held'
      const raw = await rawAttached(chunkOption(form), setContexts('disk', 'base:allocation'))
      for (let cookie = 0; cookie < 5; cookie += 1) {
        raw.send(ask(form, READ, cookie, 0, 4 * MiB))
        raw.send(ask(form, BLOCK_STATUS, cookie, 0, 4 * MiB))
      }
      await device.whenHeld(10)
      raw.socket.destroy()
      await raw.closed
      device.mode = 'inline'
      device.release()
      await until(() => server.connections.length === 0)
      t.equal(pool.bytesInUse, 0)
    },
  )
}

void t.test('a fragmented range is read as a whole, short holes with it', async (t) => {
  const device = sparseDevice()
  const extents: Extent[] = []
  for (let at = 0; at < 4 * MiB; at += 16 * KiB) {
    const short = at < 2 * MiB
    const data = short ? 14 * KiB : 8 * KiB
    extents.push({ at, length: data, kind: 'data' })
    extents.push({ at: at + data, length: 16 * KiB - data, kind: 'hole' })
  }
  device.extents = extents
  const { rawAttached } = await stage(t, { device })
  const raw = await rawAttached(chunkOption('structured'))
  for (const [at, length] of [
    [0, 2 * MiB],
    [2 * MiB, 2 * MiB],
  ] as const) {
    raw.send(ask('structured', READ, 1, at, length))
    const [content, ...more] = await answer(raw, 'structured')
    t.equal(more.length, 0)
    t.ok(content?.what === 'data' && content.data.equals(device.bytes.subarray(at, at + length)))
  }
})

void t.test('a device that tells less than it was asked is read for the rest', async (t) => {
  const device = sparseDevice()
  device.extents = [{ at: 0, length: 64 * KiB, kind: 'hole' }]
  device.bytes.fill(0, 0, 64 * KiB)
  const { rawAttached } = await stage(t, { device })
  const raw = await rawAttached(chunkOption('structured'))
  raw.send(ask('structured', READ, 1, 0, 128 * KiB))
  const [hole, data, ...more] = await answer(raw, 'structured')
  t.equal(more.length, 0)
  t.strictSame(hole, { what: 'hole', at: 0, length: 64 * KiB })
  t.ok(data?.what === 'data' && data.at === 64 * KiB && data.data.length === 64 * KiB)
})

void t.test('a device that has to look is asked only before reads that take longer', async (t) => {
  const { device, rawAttached } = await stage(t, { device: sparseDevice() })
  const raw = await rawAttached(chunkOption('structured'))
  const looks = async (length: number): Promise<boolean> => {
    device.calls.length = 0
    raw.send(ask('structured', READ, 1, 0, length))
    await answer(raw, 'structured')
    return device.calls.some((call) => call.startsWith('status'))
  }
  t.strictSame([await looks(32 * KiB), await looks(64 * KiB)], [false, true])
  device.mode = 'async'
  t.equal(await looks(64 * KiB), true, 'nobody knew that it would have to look')
  t.strictSame([await looks(64 * KiB), await looks(512 * KiB)], [false, false])
  t.equal(await looks(1 * MiB), true)
})
