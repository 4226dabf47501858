import t from 'tap'
import { Fault } from '../../core/fault.ts'
import { RangeLock } from '../../core/range-lock.ts'
import { KiB, MiB, SECTOR } from '../../core/units.ts'
import { Epoch } from '../../ramdisk/epoch.ts'
import { Flusher } from '../../ramdisk/flusher.ts'
import { PageMemory } from '../../ramdisk/page-memory.ts'
import {
  IMPATIENT,
  ManualTimers,
  runUntil,
  settle,
  tagged,
  tagsOf,
  UnrulyImage,
} from './unruly-image.ts'

interface Options {
  readonly size?: number
  readonly inFlight?: number
  readonly maxWrite?: number
  readonly urgent?: () => Promise<void> | undefined
}

function open(options: Options = {}) {
  const image = new UnrulyImage(options.size ?? 4 * MiB, 1)
  image.unruly = false
  const timers = new ManualTimers()
  const memory = new PageMemory(64 * MiB)
  const lock = new RangeLock()
  const faults: Fault[] = []
  const flusher = new Flusher(image, lock, {
    memory,
    timers,
    onError: (fault) => faults.push(fault),
    ...(options.inFlight === undefined ? {} : { inFlight: options.inFlight }),
    ...(options.urgent === undefined ? {} : { urgent: options.urgent }),
    ...(options.maxWrite === undefined ? {} : { maxWrite: options.maxWrite }),
  })
  const epoch = () => new Epoch(memory, image.geometry.size)
  return { image, timers, memory, lock, faults, flusher, epoch }
}

void t.test(
  'an epoch is written in ascending order, neighbours in one request, and flushed last',
  async (t) => {
    const { image, flusher, epoch } = open({ inFlight: 1 })
    const one = epoch()
    for (const sector of [9, 2, 1, 700, 3, 8]) one.write(tagged(sector, SECTOR), sector * SECTOR)
    one.zero(MiB, MiB, true)
    one.zero(3 * MiB, 64 * KiB, false)
    let done = false
    flusher.add(one, () => (done = true))
    t.notOk(done)
    await runUntil(flusher.idle(), image)
    t.ok(done)
    t.same(image.log, [
      { at: SECTOR, length: 3 * SECTOR, kind: 'write' },
      { at: 8 * SECTOR, length: 2 * SECTOR, kind: 'write' },
      { at: 700 * SECTOR, length: SECTOR, kind: 'write' },
      { at: MiB, length: MiB, kind: 'punch' },
      { at: 3 * MiB, length: 64 * KiB, kind: 'zero' },
      { at: 0, length: 0, kind: 'flush' },
    ])
    t.same(tagsOf(image.durable.subarray(0, 4 * SECTOR)), [0, 1, 2, 3])
  },
)

void t.test(
  'an epoch begins when the one before is durable, and is done in its turn',
  async (t) => {
    const { image, flusher, epoch } = open()
    const order: string[] = []
    const [first, empty, last] = [epoch(), epoch(), epoch()]
    first.write(tagged(1, 3 * SECTOR), 0)
    last.write(tagged(2, SECTOR), SECTOR)
    for (const [name, one] of Object.entries({ first, empty, last }))
      flusher.add(one, () => order.push(name))
    await settle()
    t.equal(image.inFlight, 1)
    await runUntil(flusher.idle(), image)
    t.same(order, ['first', 'empty', 'last'])
    t.same(
      image.log.map((request) => request.kind),
      ['write', 'flush', 'write', 'flush'],
    )
    t.same(tagsOf(image.durable.subarray(0, 3 * SECTOR)), [1, 2, 1])
  },
)

void t.test(
  'large runs are cut to what the device takes, few requests are in flight',
  async (t) => {
    const { image, flusher, epoch, memory } = open({ maxWrite: 64 * KiB })
    const one = epoch()
    one.write(tagged(5, MiB), SECTOR)
    const held = memory.bytesInUse
    flusher.add(one, () => one.release())
    await runUntil(flusher.idle(), image)
    t.equal(image.mostInFlight, 2)
    t.equal(Math.max(...image.log.map(({ length }) => length)), 64 * KiB)
    t.equal(image.log.length, 17)
    t.ok(held > 0)
    t.equal(memory.bytesInUse, 0, 'staging was given back')
    t.ok(image.durable.subarray(SECTOR, SECTOR + MiB).equals(tagged(5, MiB)))
  },
)

void t.test(
  'a fault is reported, and the same piece tried again with growing delays',
  async (t) => {
    const { image, flusher, epoch, timers, faults } = open({ inFlight: 1 })
    const one = epoch()
    one.write(tagged(1, SECTOR), 0)
    const write = image.write.bind(image)
    let failures = 9
    image.write = (from, at) => {
      failures -= 1
      if (failures >= 0) throw new Fault('IO', 'no')
      return write(from, at)
    }
    let done = false
    flusher.add(one, () => (done = true))
    const delays: number[] = []
    for (let round = 0; round < 9; round += 1) {
      await settle()
      delays.push(...timers.waiting.map(({ ms }) => ms))
      timers.fireOne()
    }
    t.same(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000])
    t.equal(faults.length, 9)
    t.notOk(done)
    await runUntil(flusher.idle(), image, timers)
    t.ok(done)
    t.same(tagsOf(image.durable.subarray(0, SECTOR)), [1])
  },
)

void t.test('after a failed flush everything is written again', async (t) => {
  const { image, flusher, epoch, timers, faults } = open()
  const one = epoch()
  one.write(tagged(1, SECTOR), 0)
  one.write(tagged(2, SECTOR), MiB)
  const flush = image.flush.bind(image)
  let failures = 1
  image.flush = () => {
    failures -= 1
    return failures < 0 ? flush() : Promise.reject(new Error('EIO'))
  }
  flusher.add(one, () => undefined)
  await runUntil(flusher.idle(), image, timers)
  t.match(faults, [{ code: 'IO', message: /flush.*EIO/ }])
  t.equal(image.log.filter(({ kind }) => kind === 'write').length, 4)
})

void t.test('a long epoch is flushed in steps, and is done after the last', async (t) => {
  const { image, flusher, epoch } = open({ size: 8 * MiB, inFlight: 1, maxWrite: 256 * KiB })
  const one = epoch()
  one.write(tagged(1, 5 * MiB), 0)
  let durableWhenDone = -1
  flusher.add(one, () => (durableWhenDone = image.log.length))
  await runUntil(flusher.idle(), image)
  const flushes = image.log.flatMap(({ kind }, index) => (kind === 'flush' ? [index] : []))
  t.same(flushes, [8, 17, 22], 'after 2 MiB, 4 MiB and at the end')
  t.equal(durableWhenDone, 23)
})

void t.test(
  'after a step that could not be flushed those before it are written again',
  async (t) => {
    const { image, flusher, epoch, timers, faults } = open({ size: 8 * MiB, maxWrite: 256 * KiB })
    const one = epoch()
    one.write(tagged(1, 5 * MiB), 0)
    const flush = image.flush.bind(image)
    let flushes = 0
    image.flush = () => {
      flushes += 1
      return flushes === 2 ? Promise.reject(new Error('EIO')) : flush()
    }
    flusher.add(one, () => undefined)
    await runUntil(flusher.idle(), image, timers)
    t.match(faults, [{ code: 'IO', message: /flush.*EIO/ }])
    t.equal(image.log.filter(({ kind }) => kind === 'write').length, 16 + 20)
    t.equal(flushes, 2 + 3)
  },
)

void t.test('a step gives way to what is more urgent, but not for ever', async (t) => {
  const never = new Promise<void>(() => undefined)
  const { image, flusher, epoch, timers } = open({
    size: 8 * MiB,
    inFlight: 2,
    urgent: () => never,
  })
  const delays: number[] = []
  const after = timers.after.bind(timers)
  timers.after = (ms, run) => {
    delays.push(ms)
    return after(ms, run)
  }
  const one = epoch()
  for (let at = 0; at < 5 * MiB; at += 32 * KiB) one.write(tagged(1, SECTOR), at)
  flusher.add(one, () => undefined)
  await settle()
  t.same(image.log, [], 'nothing is written meanwhile')
  await runUntil(flusher.idle(), image, timers)
  const flushes = image.log.filter(({ kind }) => kind === 'flush').length
  t.equal(flushes, 2, '160 small writes are two steps')
  t.same(
    delays,
    [10, 10, 10, 10],
    'before the writes of a step, and before its flush; not before each write',
  )
})

void t.test('what is urgent ends the wait for it when it ends', async (t) => {
  let over = (): void => undefined
  const urgent = new Promise<void>((resolve) => (over = resolve))
  let isUrgent = true
  const { image, flusher, epoch, timers } = open({ urgent: () => (isUrgent ? urgent : undefined) })
  const one = epoch()
  one.write(tagged(1, SECTOR), 0)
  flusher.add(one, () => undefined)
  await settle()
  t.equal(timers.waiting.length, 1)
  isUrgent = false
  over()
  await runUntil(flusher.idle(), image)
  t.same(timers.waiting, [])
  t.equal(image.log.length, 2)
})

void t.test('a device that cannot zero gets zeroes written', async (t) => {
  const { image, flusher, epoch, faults } = open()
  image.canZero = false
  image.content.fill(1)
  const one = epoch()
  one.zero(SECTOR, MiB, true)
  flusher.add(one, () => undefined)
  await runUntil(flusher.idle(), image)
  t.same(faults, [])
  t.ok(image.durable.subarray(SECTOR, SECTOR + MiB).every((byte) => byte === 0))
  t.equal(image.content[0], 1)
  t.equal(image.content[SECTOR + MiB], 1)
})

void t.test(
  'a range that another holds is left alone, and what was forgotten meanwhile is not written',
  async (t) => {
    const { image, flusher, epoch, lock } = open({ inFlight: 1 })
    const ticket = await lock.acquire(SECTOR, SECTOR)
    const one = epoch()
    one.write(tagged(1, 3 * SECTOR), 0)
    flusher.add(one, () => undefined)
    await settle()
    t.equal(image.inFlight, 0)
    one.clear(SECTOR, SECTOR)
    lock.release(ticket)
    await runUntil(flusher.idle(), image)
    t.same(
      image.log.filter(({ kind }) => kind === 'write').map(({ at, length }) => [at, length]),
      [
        [0, SECTOR],
        [2 * SECTOR, SECTOR],
      ],
    )
  },
)

void t.test('a device that answers at once still leaves the event loop its turns', async (t) => {
  const memory = new PageMemory(64 * MiB)
  let turns = 0
  let writes = 0
  let most = 0
  const flusher = new Flusher(
    {
      write: () => {
        writes += 1
        most = Math.max(most, writes)
      },
      zero: () => undefined,
      flush: () => undefined,
    },
    new RangeLock(),
    {
      memory,
      timers: {
        after: (ms, run) => {
          turns += 1
          writes = 0
          return IMPATIENT.after(ms, run)
        },
      },
      onError: (fault) => t.fail(fault.message),
    },
  )
  const one = new Epoch(memory, 64 * MiB)
  for (let at = 0; at < 32 * MiB; at += 64 * KiB) one.write(tagged(1, 4 * KiB), at)
  flusher.add(one, () => undefined)
  await flusher.idle()
  t.ok(most <= 16, `${most} writes between turns`)
  t.ok(turns >= 512 / 16)
})

void t.test('closing ends waits and begins nothing more', async (t) => {
  const { image, flusher, epoch, timers, faults } = open({ inFlight: 1 })
  image.write = () => {
    throw new Fault('IO', 'no')
  }
  let done = false
  const one = epoch()
  one.write(tagged(1, SECTOR), 0)
  flusher.add(one, () => (done = true))
  const idle = flusher.idle()
  await settle()
  t.equal(timers.waiting.length, 1)
  const over = t.rejects(idle, { code: 'SHUTDOWN' })
  await flusher.close()
  await over
  t.equal(timers.waiting.length, 0)
  t.equal(faults.length, 1)
  t.notOk(done)
  await t.rejects(flusher.idle(), { code: 'SHUTDOWN' })
  await flusher.close()
})
