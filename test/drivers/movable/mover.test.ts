import t, { type Test } from 'tap'

import { FAST_ZERO, FUA, type BlockDevice } from '../../../core/block-device.ts'
import { Fault } from '../../../core/fault.ts'
import { SILENT } from '../../../core/logger.ts'
import type { ExportEvent } from '../../../drivers/movable/export-event.ts'
import { Mover, type Source } from '../../../drivers/movable/mover.ts'
import { ManualClock } from '../../support/manual-clock.ts'
import { pattern } from '../device-model.ts'
import { RecordingDevice, type RecordingOptions } from '../recording-device.ts'

const bytes = pattern(512, 1)
const SIZE = 64 * 1024

/** A promise that the test settles. */
class Latch {
  open: () => void = () => undefined
  readonly opened = new Promise<void>((resolve) => (this.open = resolve))
}

/** A pipeline over devices that the test makes, and what happens to it. */
class Scripted implements Source {
  readonly pipeline: string
  devices: RecordingDevice[] = []
  opens = 0
  /** What the next openings give: a device, a fault, or whatever a promise brings. */
  next: (() => BlockDevice | Fault | Promise<BlockDevice>)[] = []
  seen: number | undefined | Fault
  readonly #options: RecordingOptions
  readonly #log: string[]

  constructor(pipeline: string, log: string[], options: RecordingOptions = {}) {
    this.pipeline = pipeline
    this.#log = log
    this.#options = options
  }

  get device(): RecordingDevice {
    const device = this.devices.at(-1)
    if (device === undefined) throw new Error('nothing was opened')
    return device
  }

  async open(): Promise<BlockDevice> {
    this.opens += 1
    const result = await (this.next.shift() ?? (() => this.make()))()
    if (result instanceof Fault) throw result
    this.#log.push(`open ${this.pipeline}`)
    return result
  }

  make(options: RecordingOptions = {}): RecordingDevice {
    const device = new RecordingDevice({ ...this.#options, ...options })
    const close = device.close.bind(device)
    device.close = async () => {
      await close()
      this.#log.push(`close ${this.pipeline}`)
    }
    this.devices.push(device)
    return device
  }

  foresee(): Promise<number | undefined> {
    if (this.seen instanceof Fault) return Promise.reject(this.seen)
    return Promise.resolve(this.seen)
  }
}

interface Stage {
  readonly mover: Mover
  readonly disk: BlockDevice
  readonly old: Scripted
  readonly other: Scripted
  readonly clock: ManualClock
  readonly events: ExportEvent[]
  /** Openings and closings, in order. */
  readonly log: string[]
}

async function stage(
  options: RecordingOptions = {},
  others: RecordingOptions = options,
  sizeFixed = false,
): Promise<Stage> {
  const log: string[] = []
  const events: ExportEvent[] = []
  const clock = new ManualClock()
  const old = new Scripted('old', log, options)
  const other = new Scripted('other', log, others)
  const mover = new Mover(old, await old.open(), {
    ...{ exportName: 'disk', sizeFixed, timers: clock, nowMs: clock.nowMs, logger: SILENT },
    onEvent: (event) => events.push(event),
  })
  return { mover, disk: mover.device, old, other, clock, events, log }
}

const turn = (): Promise<void> => new Promise(setImmediate)

/** Whether a request has been answered, and how. */
function watch(request: unknown): { readonly state: string } {
  const watched = { state: 'waits' }
  Promise.resolve(request).then(
    () => (watched.state = 'done'),
    (error: unknown) => (watched.state = error instanceof Fault ? error.code : 'bug'),
  )
  return watched
}

void t.test(
  'a pause flushes and closes; a resume opens, and what waited goes on in order',
  async (t) => {
    const { mover, disk, old, events, log, clock } = await stage()
    await disk.write(bytes, 0, 0)
    await mover.pause(1000)
    t.match(mover.status, { state: 'paused', pipeline: 'old', error: null })
    t.strictSame(old.device.calls, ['write 0+512', 'flush', 'close'])
    const waiting = [disk.write(bytes, 512, 0), disk.flush(), disk.read(Buffer.alloc(4), 1)].map(
      (request) => Promise.resolve(request),
    )
    const states = waiting.map(watch)
    await clock.advance(999)
    t.strictSame(
      states.map(({ state }) => state),
      ['waits', 'waits', 'waits'],
    )
    const [first] = old.devices
    const pauseUs = await mover.resume(undefined, 1000)
    t.equal(pauseUs, 999_000)
    await Promise.all(waiting)
    t.strictSame(old.device.calls, ['write 512+512', 'flush', 'read 1+4'])
    t.strictSame(first?.calls.slice(2), ['close'], 'nothing went to the old device')
    t.strictSame(log, ['open old', 'close old', 'open old'])
    t.strictSame(events, [
      { event: 'EXPORT_PAUSED', data: { export: 'disk', timeoutMs: 1000 } },
      {
        event: 'EXPORT_RESUMED',
        data: { export: 'disk', pipeline: 'old', pauseUs: 999_000, reason: null },
      },
    ])
    t.equal(clock.waiting, 0, 'no timer is left')
  },
)

void t.test('a pause waits for what is under way, and lets nothing new in', async (t) => {
  const { mover, disk, old } = await stage({ later: true })
  const latch = new Latch()
  old.device.gate = latch.opened
  const write = watch(disk.write(bytes, 0, 0))
  const pausing = mover.pause(1000)
  await turn()
  const later = watch(disk.write(bytes, 4096, 0))
  t.equal(mover.status.state, 'pausing')
  t.strictSame(old.device.calls, ['write 0+512'])
  latch.open()
  await pausing
  t.equal(write.state, 'done')
  t.equal(later.state, 'waits')
  t.strictSame(old.device.calls, ['write 0+512', 'flush', 'close'])
  await mover.resume(undefined, 1000)
  await turn()
  t.equal(later.state, 'done')
})

void t.test(
  'a pause that cannot drain or flush in time is given up, and all goes on',
  async (t) => {
    for (const stuck of ['a request', 'the flush']) {
      const { mover, disk, old, clock, events } = await stage({ later: true })
      const latch = new Latch()
      old.device.gate = latch.opened
      const write = stuck === 'a request' ? watch(disk.write(bytes, 0, 0)) : undefined
      const pausing = mover.pause(1000)
      const refused = t.rejects(pausing, { code: 'TIMEOUT' })
      await turn()
      const held = watch(disk.read(Buffer.alloc(1), 0))
      await clock.advance(1000)
      await refused
      t.equal(mover.status.state, 'serving')
      latch.open()
      await turn()
      t.equal(held.state, 'done', 'what came meanwhile is served')
      if (write !== undefined) t.equal(write.state, 'done')
      t.notOk(old.device.calls.includes('close'))
      t.strictSame(events, [])
      t.equal(clock.waiting, 0)
    }
  },
)

void t.test('a failed flush is the end of a pause, not of the export', async (t) => {
  const { mover, disk, old } = await stage()
  old.device.flush = () => {
    throw new Fault('IO', 'the disk is full of holes')
  }
  await t.rejects(mover.pause(1000), { code: 'IO', what: /holes/ })
  t.equal(disk.read(Buffer.alloc(1), 0), undefined)
  t.equal(mover.status.state, 'serving')
})

void t.test('a pause that lasts too long ends by itself, loudly', async (t) => {
  const { mover, disk, clock, events } = await stage()
  await mover.pause(1000)
  const held = watch(disk.read(Buffer.alloc(1), 0))
  await clock.advance(600)
  await mover.pause(1000)
  await clock.advance(999)
  t.equal(mover.status.state, 'paused', 'a second pause begins the time anew')
  await clock.advance(1)
  t.equal(mover.status.state, 'serving')
  t.equal(held.state, 'done')
  t.match(events.at(-1), { event: 'EXPORT_RESUMED', data: { reason: 'the pause lasted too long' } })
  await mover.pause(1000)
})

void t.test(
  'where the old pipeline cannot be opened again, requests fail until a resume',
  async (t) => {
    const { mover, disk, old, other, clock, events } = await stage()
    await mover.pause(1000)
    const held = watch(disk.read(Buffer.alloc(1), 0))
    old.next = [() => new Fault('IN_USE', 'somebody has it')]
    await clock.advance(1000)
    t.match(mover.status, { state: 'failed', pipeline: 'old', error: /somebody has it/ })
    t.equal(held.state, 'IO')
    t.throws(() => disk.write(bytes, 0, 0), { code: 'IO' })
    t.match(events.at(-1), { event: 'EXPORT_ERROR', data: { error: /somebody/ } })
    await t.rejects(mover.pause(1000), { code: 'NOT_PERMITTED' })
    await t.rejects(mover.reopen(other, 1000), { code: 'NOT_PERMITTED' })

    old.next = [() => new Fault('IN_USE', 'still')]
    await t.rejects(mover.resume(undefined, 1000), { code: 'IN_USE' })
    t.match(mover.status, { state: 'failed', error: /still/ })
    await mover.resume(other, 1000)
    t.match(mover.status, { state: 'serving', pipeline: 'other', error: null })
    t.equal(disk.read(Buffer.alloc(1), 0), undefined)
  },
)

void t.test('a move serves the other pipeline, opened after the old one was closed', async (t) => {
  const { mover, disk, old, other, log } = await stage()
  await mover.reopen(other, 1000)
  t.strictSame(log, ['open old', 'close old', 'open other'])
  await disk.write(bytes, 0, 0)
  t.strictSame(other.device.calls, ['write 0+512'])
  t.strictSame(old.device.calls, ['flush', 'close'])
  t.equal(mover.status.pipeline, 'other')
  await mover.pause(1000)
  await mover.resume(undefined, 1000)
  t.equal(mover.status.pipeline, 'other', 'it is the one to come back to now')
})

void t.test('what shows before the pause is refused before the pause', async (t) => {
  const cases: [number | Fault, { code: string; what?: RegExp }][] = [
    [new Fault('NOT_FOUND', 'no such image'), { code: 'NOT_FOUND' }],
    [SIZE - 1, { code: 'INVALID', what: /65535 bytes/ }],
  ]
  for (const [seen, fault] of cases) {
    const { mover, old, other, log, events } = await stage()
    other.seen = seen
    await t.rejects(mover.reopen(other, 1000), fault)
    t.strictSame([log, events, old.device.calls], [['open old'], [], []])
    t.equal(mover.device.held, false)
  }
})

void t.test('a pipeline that cannot be opened leaves the old one in its place', async (t) => {
  const { mover, disk, old, other, events, log } = await stage()
  other.next = [() => new Fault('INVALID', 'the image is damaged', { where: 'a', remedy: 'b' })]
  const refused = t.rejects(mover.reopen(other, 1000), {
    code: 'INVALID',
    message: 'the image is damaged; the export goes on with the pipeline before: a (b)',
  })
  const held = watch(disk.read(Buffer.alloc(1), 0))
  await refused
  await turn()
  t.equal(held.state, 'done')
  t.match(mover.status, { state: 'serving', pipeline: 'old', error: null })
  t.strictSame(log, ['open old', 'close old', 'open old'])
  t.match(events.at(-1), { event: 'EXPORT_RESUMED', data: { reason: /damaged/ } })
  t.equal(old.opens, 2)

  other.next = [() => new Fault('INVALID', 'the image is damaged')]
  old.next = [() => new Fault('IO', 'gone')]
  await t.rejects(mover.reopen(other, 1000), {
    code: 'INVALID',
    what: 'the image is damaged; the export has failed',
  })
  t.match(mover.status, { state: 'failed', error: /gone/ })
})

const misfits: [string, RecordingOptions, RegExp][] = [
  ['is smaller', { size: SIZE - 512 }, /65024 bytes/],
  ['is read-only', { readOnly: true }, /read-only/],
  ['cannot flush', { can: { flush: false } }, /durable/],
  ['takes shorter requests', { max: 4096 }, /4096 bytes at a time/],
]

for (const [what, options, reason] of misfits)
  void t.test(`a pipeline that ${what} is closed again, and the old one serves on`, async (t) => {
    const { mover, disk, other, log } = await stage({}, options)
    await t.rejects(mover.reopen(other, 1000), { code: 'INVALID', what: reason, where: 'other' })
    t.strictSame(log, ['open old', 'close old', 'open other', 'close other', 'open old'])
    t.equal(disk.write(bytes, 0, 0), undefined)
  })

void t.test(
  'a larger disk shows its size, but not where another host has the size too',
  async (t) => {
    const { mover, disk, other } = await stage({}, { size: 2 * SIZE })
    const { geometry } = disk
    t.equal(disk.geometry, geometry, 'the same object as long as nothing changes')
    await mover.pause(1000)
    t.equal(disk.geometry.size, SIZE)
    await mover.resume(other, 1000)
    t.equal(disk.geometry.size, 2 * SIZE)
    await disk.write(bytes, 2 * SIZE - 512, 0)
    await disk.resize(3 * SIZE)
    await mover.pause(1000)
    t.equal(disk.geometry.size, 3 * SIZE, 'also while nothing is below')

    const fixed = await stage({}, { size: 2 * SIZE }, true)
    await t.rejects(fixed.mover.reopen(fixed.other, 1000), {
      code: 'INVALID',
      what: /keeps its 65536/,
    })
  },
)

void t.test('what a later pipeline cannot do is done in another way', async (t) => {
  const lacking = {
    fua: false,
    trim: false,
    zero: false,
    fastZero: false,
    status: false,
    resize: false,
  }
  const { mover, disk, other } = await stage({ can: { cache: true } }, { can: lacking, min: 512 })
  const { can } = disk
  await mover.reopen(other, 1000)
  t.strictSame(disk.can, can)
  t.equal(disk.geometry.block.min, 1)
  await disk.write(bytes, 0, FUA)
  await disk.zero(512, 512, 0)
  await disk.trim(0, 512, 0)
  await disk.write(Buffer.from('x'), 1025, 0)
  await disk.cache?.(0, 512)
  t.strictSame(await disk.status(0, 512), [{ at: 0, length: 512, kind: 'data' }])
  t.throws(() => disk.zero(0, 512, FAST_ZERO), { code: 'NOT_SUPPORTED' })
  await t.rejects(disk.resize(SIZE), { code: 'NOT_SUPPORTED' })
  t.strictSame(other.device.calls, [
    ...['write 0+512', 'flush', 'write 512+512'],
    ...['read 1024+512', 'write 1024+512'],
  ])
})

void t.test('maps stay, and know less where the pipeline does', async (t) => {
  const { mover, other, old } = await stage()
  t.strictSame(Object.keys(mover.device.maps), [])
  old.next = [
    () => {
      const device = old.make()
      device.maps = { depth: (at, length) => [{ at, length, value: 7 }] }
      return device
    },
  ]
  const options = { exportName: 'disk', sizeFixed: false, logger: SILENT, onEvent: () => undefined }
  const clock = new ManualClock()
  const deep = new Mover(old, await old.open(), { ...options, timers: clock, nowMs: clock.nowMs })
  t.strictSame(await deep.device.maps.depth?.(1, 2), [{ at: 1, length: 2, value: 7 }])
  await deep.pause(1000)
  const asked = deep.device.maps.depth?.(1, 2)
  await deep.resume(other, 1000)
  t.strictSame(await asked, [{ at: 1, length: 2, value: 1 }])
})

void t.test('one command at a time; a repeated resume changes nothing', async (t) => {
  const { mover, other, old } = await stage({ later: true })
  const latch = new Latch()
  old.device.gate = latch.opened
  void watch(mover.device.write(bytes, 0, 0))
  const pausing = mover.pause(1000)
  const commands: (() => Promise<unknown>)[] = [
    () => mover.pause(1),
    () => mover.resume(undefined, 1),
    () => mover.reopen(other, 1),
  ]
  for (const command of commands) await t.rejects(command(), { code: 'IN_USE' })
  latch.open()
  await pausing
  await mover.resume(undefined, 1000)
  t.equal(await mover.resume(undefined, 1000), 0)
  await t.rejects(mover.resume(other, 1000), { code: 'NOT_PERMITTED' })
  t.equal(old.opens, 2)
})

void t.test('an opening that hangs is given up, and closed should it come after all', async (t) => {
  const { mover, disk, old, other, clock } = await stage()
  const latch = new Latch()
  other.next = [() => latch.opened.then(() => other.make())]
  const refused = t.rejects(mover.reopen(other, 1000), { code: 'TIMEOUT' })
  await turn()
  await clock.advance(1000)
  await refused
  t.match(mover.status, { state: 'serving', pipeline: 'old' })
  latch.open()
  await turn()
  t.strictSame(other.device.calls, ['close'])
  t.equal(disk.read(Buffer.alloc(1), 0), undefined)
  t.equal(old.opens, 2)
})

void t.test('images that do not close in time are not opened twice', async (t) => {
  const { mover, disk, old, clock } = await stage()
  const latch = new Latch()
  const { device } = old
  device.close = () => latch.opened
  const refused = t.rejects(mover.pause(1000), { code: 'TIMEOUT' })
  await turn()
  const held = watch(disk.read(Buffer.alloc(1), 0))
  await clock.advance(1000)
  t.equal(held.state, 'waits')
  await clock.advance(1000)
  await refused
  t.equal(mover.status.state, 'failed')
  t.equal(held.state, 'IO')
  t.equal(old.opens, 1)
  latch.open()
  await mover.resume(undefined, 1000)
  t.equal(disk.read(Buffer.alloc(1), 0), undefined)
})

void t.test('a close that fails brings the pipeline back, and is reported', async (t) => {
  const { mover, old, disk } = await stage()
  old.device.close = () => Promise.reject(new Fault('IO', 'the last table could not be written'))
  await t.rejects(mover.pause(1000), { code: 'IO', what: /last table/ })
  t.equal(mover.status.state, 'serving')
  t.equal(disk.read(Buffer.alloc(1), 0), undefined)
})

async function ended(t: Test, given: Stage): Promise<void> {
  const { mover, disk, clock, log } = given
  disk.stopWaiting?.()
  await disk.close()
  await disk.close()
  const balance = (word: string): number => log.filter((line) => line.startsWith(word)).length
  t.equal(balance('open'), balance('close'), 'whatever was opened is closed')
  t.equal(clock.waiting, 0)
  await t.rejects(mover.pause(1000), { code: 'SHUTDOWN' })
  await t.rejects(mover.resume(undefined, 1000), { code: 'SHUTDOWN' })
}

void t.test('the end comes at any moment: nothing waits, nothing stays open', async (t) => {
  const serving = await stage()
  await ended(t, serving)

  const paused = await stage()
  await paused.mover.pause(1000)
  const held = watch(paused.disk.read(Buffer.alloc(1), 0))
  await ended(t, paused)
  t.equal(held.state, 'SHUTDOWN')
  t.throws(() => paused.disk.read(Buffer.alloc(1), 0), { code: 'SHUTDOWN' })

  const pausing = await stage({ later: true })
  const latch = new Latch()
  pausing.old.device.gate = latch.opened
  const write = watch(pausing.disk.write(bytes, 0, 0))
  const refused = t.rejects(pausing.mover.pause(1000), { code: 'SHUTDOWN' })
  await turn()
  const later = watch(pausing.disk.read(Buffer.alloc(1), 0))
  const ending = ended(t, pausing)
  latch.open()
  await Promise.all([ending, refused])
  t.strictSame([write.state, later.state], ['done', 'done'], 'what is open serves to the end')

  const opening = await stage()
  const gate = new Latch()
  opening.other.next = [() => gate.opened.then(() => opening.other.make())]
  const given = t.rejects(opening.mover.reopen(opening.other, 1000), { code: 'SHUTDOWN' })
  await turn()
  const request = watch(opening.disk.read(Buffer.alloc(1), 0))
  const closing = ended(t, opening)
  await turn()
  t.equal(request.state, 'SHUTDOWN')
  gate.open()
  await Promise.all([given, closing])
  t.equal(opening.old.opens, 1, 'nothing is opened after the end')

  const failed = await stage()
  await failed.mover.pause(1000)
  failed.old.next = [() => new Fault('IO', 'gone')]
  await t.rejects(failed.mover.resume(undefined, 1000), { code: 'IO' })
  await ended(t, failed)
})
