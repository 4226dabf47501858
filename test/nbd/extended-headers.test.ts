/** What only extended headers can say: lengths of 64 bits, and payloads where none is needed. */

import t from 'tap'

import { GiB, KiB, MiB } from '../../core/units.ts'
import { stage } from './harness.ts'
import { ALL_CAPABILITIES, MemoryDevice } from './memory-device.ts'
import {
  BLOCK_STATUS,
  CACHE,
  EXTENDED_HEADERS,
  FLUSH,
  PAYLOAD_LEN,
  READ,
  TRIM,
  WRITE,
  WRITE_ZEROES,
  answer,
  ask,
  askWith,
  errorOf,
  reply,
  setContexts,
} from './wire.ts'

const TiB = 1024 * GiB

/** Larger than any compact header can say; what is beyond its first bytes is not kept. */
function hugeDevice(): MemoryDevice {
  const device = new MemoryDevice(64 * KiB, { size: 8 * TiB })
  device.can = { ...ALL_CAPABILITIES, status: true, cache: true }
  device.extents = [{ at: 0, length: 8 * TiB, kind: 'hole' }]
  return device
}

void t.test('effects reach beyond 4 GiB in one request', async (t) => {
  const { device, rawAttached } = await stage(t, { device: hugeDevice() })
  const raw = await rawAttached(EXTENDED_HEADERS, setContexts('disk', 'base:allocation'))
  for (const type of [TRIM, WRITE_ZEROES, CACHE]) {
    raw.send(ask('extended', type, 1, 4 * KiB, 5 * TiB))
    t.strictSame(await answer(raw, 'extended'), [{ what: 'none' }])
  }
  raw.send(ask('extended', BLOCK_STATUS, 1, 4 * KiB, 6 * TiB))
  t.strictSame(await answer(raw, 'extended'), [{ what: 'status', id: 1, runs: [[6 * TiB, 3]] }])
  t.strictSame(device.calls, [
    `trim 4096+${5 * TiB} flags=0`,
    `zero 4096+${5 * TiB} flags=0`,
    `cache 4096+${5 * TiB} flags=0`,
    `status 4096+${6 * TiB} flags=0`,
  ])
})

void t.test('lengths that no disk has fail as what is beyond the end does', async (t) => {
  const { device, rawAttached } = await stage(t, { device: hugeDevice() })
  const raw = await rawAttached(EXTENDED_HEADERS, setContexts('disk', 'base:allocation'))
  const cases: [number, number][] = [
    [READ, 22],
    [TRIM, 22],
    [WRITE_ZEROES, 28],
    [CACHE, 22],
    [BLOCK_STATUS, 22],
  ]
  for (const length of [2n ** 64n - 1n, 2n ** 53n + 1n, BigInt(8 * TiB) + 1n]) {
    for (const [type, error] of cases) {
      raw.send(ask('extended', type, 1, 0, length))
      t.equal(await errorOf(raw, 'extended'), error, `${type} of ${length}`)
    }
  }
  t.ok(device.violations.length === 0)
})

void t.test('a reply repeats the offset of its request, whatever it was', async (t) => {
  const { rawAttached } = await stage(t)
  const raw = await rawAttached(EXTENDED_HEADERS)
  for (const offset of [0n, 513n, 2n ** 40n, 2n ** 53n + 1n, 2n ** 64n - 1n]) {
    const cookie = 2n ** 64n - 1n - offset
    raw.send(ask('extended', READ, cookie, offset, 1))
    const [chunk] = await reply(raw, 'extended')
    t.strictSame([chunk?.offset, chunk?.cookie], [offset, cookie])
  }
})

void t.test('a WRITE without the payload flag has no payload, and is refused', async (t) => {
  const { device, rawAttached } = await stage(t)
  const raw = await rawAttached(EXTENDED_HEADERS)
  const header = ask('extended', WRITE, 1, 0, 4096)
  header.writeUInt16BE(0, 4)
  raw.send(header)
  t.equal(await errorOf(raw, 'extended'), 22)
  raw.send(ask('extended', WRITE, 2, 0, 5), Buffer.from('hello'))
  t.equal(await errorOf(raw, 'extended'), 0)
  t.equal(device.bytes.toString('latin1', 0, 5), 'hello')
})

void t.test('payloads of commands that take none are drained and refused', async (t) => {
  const { device, rawAttached } = await stage(t)
  const raw = await rawAttached(EXTENDED_HEADERS)
  for (const type of [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 99]) {
    for (const length of [0, 1, 100 * KiB]) {
      raw.send(askWith(type, 1, 0, Buffer.alloc(length)))
      t.equal(await errorOf(raw, 'extended'), 22, `command ${type} with ${length} bytes`)
    }
  }
  t.strictSame(device.calls, [])
})

void t.test('a payload that nobody can drain drops the client', async (t) => {
  const { rawAttached } = await stage(t)
  for (const type of [WRITE, BLOCK_STATUS, 99]) {
    const raw = await rawAttached(EXTENDED_HEADERS)
    raw.send(ask('extended', type, 1, 0, 64 * MiB + 1, PAYLOAD_LEN))
    t.equal((await raw.rest()).length, 0)
  }
})

void t.test('a compact header where extended ones were negotiated drops the client', async (t) => {
  const { rawAttached } = await stage(t)
  const raw = await rawAttached(EXTENDED_HEADERS)
  raw.send(ask('structured', READ, 1, 0, 1), Buffer.alloc(4))
  t.equal((await raw.rest()).length, 0)
})

void t.test('the payload flag means nothing to a compact header', async (t) => {
  const { device, rawAttached } = await stage(t)
  const raw = await rawAttached()
  raw.send(ask('structured', READ, 1, 0, 10, PAYLOAD_LEN))
  t.equal((await raw.reply()).error, 22)
  raw.send(ask('structured', WRITE, 2, 0, 5, PAYLOAD_LEN), Buffer.from('hello'))
  t.equal((await raw.reply()).error, 22)
  t.strictSame(device.calls, [])
})
