import t from 'tap'

import { valve, ValveDevice, type ValveOptions } from '../../../drivers/valve/valve.ts'
import { Guard } from '../../../drivers/guard.ts'
import { ManualClock } from '../../support/manual-clock.ts'
import { openContext } from '../open-context.ts'
import { RecordingDevice } from '../recording-device.ts'

interface Subject {
  readonly clock: ManualClock
  readonly below: RecordingDevice
  readonly valve: ValveDevice
  /** Notes when `request` is answered. */
  readonly watch: (name: string, request: void | Promise<void>) => void
  readonly done: string[]
}

function subject(options: Partial<ValveOptions>): Subject {
  const clock = new ManualClock()
  const below = new RecordingDevice({ size: 1 << 20 })
  const done: string[] = []
  return {
    clock,
    below,
    done,
    valve: new ValveDevice(below, {
      reads: true,
      writes: true,
      burstMs: 1000,
      timers: clock,
      nowMs: clock.nowMs,
      ...options,
    }),
    watch: (name, request) => {
      if (request === undefined) done.push(`${name} at once`)
      else {
        void request.then(
          () => done.push(`${name} at ${clock.nowMs()}`),
          (error: unknown) => done.push(`${name} failed: ${String(error)}`),
        )
      }
    },
  }
}

const bytes = (length: number): Buffer => Buffer.alloc(length)

void t.test(
  'what the rate allows goes on at once, the rest in its order when the rate allows it',
  async (t) => {
    const { valve, clock, watch, done } = subject({ bytes: 1000 })
    watch('a', valve.write(bytes(600), 0, 0))
    watch('b', valve.write(bytes(600), 0, 0))
    watch('c', valve.read(bytes(100), 0))
    watch('d', valve.read(bytes(100), 0))
    t.equal(valve.waiting, 3)
    await clock.advance(10_000)
    t.strictSame(done, ['a at once', 'b at 200', 'c at 300', 'd at 400'])
    t.equal(clock.waiting, 0)
  },
)

void t.test('a large request is not starved by small ones', async (t) => {
  const { valve, clock, watch, done } = subject({ bytes: 1000 })
  watch('first', valve.write(bytes(1000), 0, 0))
  watch('large', valve.write(bytes(5000), 0, 0))
  for (let step = 0; step < 20; step += 1) {
    watch('small', valve.read(bytes(100), 0))
    await clock.advance(100)
  }
  t.equal(done[1], 'large at 1000', 'as soon as the bucket is full')
  t.equal(done.length, 2, 'what is more than the burst is paid off by those behind it')
  await clock.advance(60_000)
  t.equal(done[2], 'small at 5100')
})

void t.test('requests are limited by their number as well', async (t) => {
  const { valve, clock, watch, done } = subject({ iops: 10, burstMs: 100 })
  watch('zero', valve.zero(0, 1 << 20, 0))
  watch('trim', valve.trim(0, 1 << 20, 0))
  watch('read', valve.read(bytes(1), 0))
  await clock.advance(1000)
  t.strictSame(done, ['zero at once', 'trim at 100', 'read at 200'])
})

void t.test('zeroes and trims cost no bytes, flush and status cost nothing', async (t) => {
  const { valve, watch, done } = subject({ bytes: 1 })
  watch('write', valve.write(bytes(4096), 0, 0))
  watch('zero', valve.zero(0, 1 << 20, 0))
  watch('trim', valve.trim(0, 1 << 20, 0))
  watch('flush', valve.flush())
  t.strictSame(done, ['write at once', 'zero at once', 'trim at once', 'flush at once'])
  t.equal((await valve.status(0, 512)).length, 1)
})

for (const { limits, free, held } of [
  { limits: 'reads', free: 'write', held: 'read' },
  { limits: 'writes', free: 'read', held: 'write' },
] as const) {
  void t.test(`a valve for ${limits} holds up no ${free}`, async (t) => {
    const { valve, clock, watch, done } = subject({
      bytes: 100,
      reads: limits === 'reads',
      writes: limits === 'writes',
    })
    for (let step = 0; step < 2; step += 1) {
      watch('read', valve.read(bytes(100), 0))
      watch('write', valve.write(bytes(100), 0, 0))
    }
    await clock.advance(5000)
    t.strictSame(
      done.sort(),
      [`${free} at once`, `${free} at once`, `${held} at once`, `${held} at 1000`].sort(),
    )
  })
}

void t.test('a failure below is the failure of the request that waited', async (t) => {
  const { valve, below, clock, watch, done } = subject({ bytes: 100 })
  watch('a', valve.write(bytes(100), 0, 0))
  watch('b', valve.write(bytes(100), 0, 0))
  below.write = () => {
    throw new Error('broken')
  }
  await clock.advance(5000)
  t.strictSame(done, ['a at once', 'b failed: Error: broken'])
})

void t.test('closing the disk ends every wait: what was asked is still done', async (t) => {
  const { valve, below, clock, watch, done } = subject({ bytes: 1 })
  const disk = new Guard(valve, false)
  for (const name of ['a', 'b', 'c']) watch(name, disk.write(bytes(4096), 0, 0))
  t.equal(valve.waiting, 2)
  await disk.close()
  t.strictSame(done, ['a at once', 'b at 0', 'c at 0'])
  t.strictSame(below.calls, ['write 0+4096', 'write 0+4096', 'write 0+4096', 'close'])
  t.equal(clock.waiting, 0, 'no timer is left')
})

const open = (target: string, settings: Record<string, string>): unknown =>
  valve.open(
    { driver: 'valve', target, settings: new Map(Object.entries(settings)) },
    new RecordingDevice(),
    openContext(),
  )

void t.test('a valve is made of a target and a limit, and of nothing less', (t) => {
  t.doesNotThrow(() => open('all', { bytes: '10M', iops: '100', burst: '50' }))
  t.throws(() => open('everything', { bytes: '10M' }), { code: 'INVALID', message: /valve:all/ })
  t.throws(() => open('all', {}), { code: 'INVALID', message: /bytes= or iops=/ })
  t.throws(() => open('all', { bytes: '0' }), { code: 'INVALID' })
  t.throws(() => open('all', { iops: '1.5' }), { code: 'INVALID' })
  t.throws(() => open('all', { iops: '1', burst: '0' }), { code: 'INVALID' })
  t.end()
})
