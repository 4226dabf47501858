import t from 'tap'

import { Fault } from '../../core/fault.ts'
import { fault, FaultDevice } from '../../drivers/fault.ts'
import { Guard } from '../../drivers/guard.ts'
import { openContext } from './open-context.ts'
import { RecordingDevice } from './recording-device.ts'

async function open(
  target: string,
  settings: Record<string, string> = {},
): Promise<{ layer: FaultDevice; below: RecordingDevice }> {
  const below = new RecordingDevice({ size: 65_536, min: 512 })
  const stage = { driver: 'fault', target, settings: new Map(Object.entries(settings)) }
  const layer = await fault.open(stage, below, openContext())
  if (!(layer instanceof FaultDevice)) throw new Error('the driver opens its own device')
  return { below, layer }
}

/** The code of its fault, or `done`. */
async function outcome(request: () => unknown): Promise<string> {
  try {
    await request()
    return 'done'
  } catch (error) {
    return error instanceof Fault ? error.code : String(error)
  }
}

const BYTES = Buffer.alloc(4096, 1)

void t.test('requests of the named kinds fail, and reach no disk; the others do', async (t) => {
  const { layer, below } = await open('write,flush', { error: 'ENOSPC' })
  t.equal(await outcome(() => layer.write(BYTES, 0, 0)), 'NO_SPACE')
  t.equal(await outcome(() => layer.flush()), 'NO_SPACE')
  t.equal(await outcome(() => layer.read(BYTES, 0)), 'done')
  t.equal(await outcome(() => layer.zero(0, 512, 0)), 'done')
  t.equal(await outcome(() => layer.trim(0, 512, 0)), 'done')
  t.equal(await outcome(() => layer.status(0, 512)), 'done')
  t.strictSame(below.calls, ['read 0+4096', 'zero 0+512', 'trim 0+512', 'status 0+512'])
  t.equal(layer.hits, 2)
})

void t.test('all hits every kind, with EIO unless told otherwise', async (t) => {
  const { layer, below } = await open('all')
  const requests = [
    () => layer.read(BYTES, 0),
    () => layer.write(BYTES, 0, 0),
    () => layer.zero(0, 512, 0),
    () => layer.trim(0, 512, 0),
    () => layer.flush(),
    () => layer.status(0, 512),
  ]
  for (const request of requests) t.equal(await outcome(request), 'IO')
  t.strictSame(below.calls, [])
})

for (const { does, settings, hit } of [
  { does: 'the third alone', settings: { first: '3', count: '1' }, hit: [3] },
  { does: 'all from the fourth', settings: { first: '4' }, hit: [4, 5, 6] },
  { does: 'the first two', settings: { count: '2' }, hit: [1, 2] },
  { does: 'none', settings: { probability: '0' }, hit: [] },
  { does: 'a range', settings: { at: '8K', length: '4K' }, hit: [3] },
  { does: 'from a place on', settings: { at: '16385' }, hit: [5, 6] },
] as { does: string; settings: Record<string, string>; hit: number[] }[]) {
  void t.test(`of matching requests it hits ${does}`, async (t) => {
    const { layer } = await open('write', settings)
    const failed: number[] = []
    for (let number = 1; number <= 6; number += 1) {
      if ((await outcome(() => layer.write(BYTES, (number - 1) * 4096, 0))) === 'IO') {
        failed.push(number)
      }
    }
    t.strictSame(failed, hit)
  })
}

void t.test('chance is the seed alone', async (t) => {
  const pattern = async (seed: string): Promise<string> => {
    const { layer } = await open('write', { probability: '0.3', seed })
    let text = ''
    for (let number = 0; number < 200; number += 1) {
      text += (await outcome(() => layer.write(BYTES, 0, 0))) === 'IO' ? 'x' : '.'
    }
    return text
  }
  const first = await pattern('7')
  t.equal(await pattern('7'), first)
  t.not(await pattern('8'), first)
  const hits = first.replaceAll('.', '').length
  t.ok(hits > 30 && hits < 90, `${hits} of 200`)
})

void t.test('a request that fails may have been carried out, in whole or by half', async (t) => {
  for (const [applied, call] of [
    ['all', 'write 0+4096'],
    ['half', 'write 0+2048'],
  ] as const) {
    const { layer, below } = await open('write', { applied })
    t.equal(await outcome(() => layer.write(BYTES, 0, 0)), 'IO')
    t.strictSame(below.calls, [call])
  }
  const { layer, below } = await open('write', { applied: 'half' })
  t.equal(await outcome(() => layer.write(BYTES.subarray(0, 512), 0, 0)), 'IO')
  t.strictSame(below.calls, [], 'half a block is no block')
})

void t.test(
  'a stuck request waits for its release, then it is done or fails as told',
  async (t) => {
    for (const [settings, expected] of [
      [{ stuck: 'on' }, 'done'],
      [{ stuck: 'on', error: 'ENOMEM' }, 'NO_MEMORY'],
    ] as const) {
      const { layer, below } = await open('read', settings)
      const reading = outcome(() => layer.read(BYTES, 0))
      t.equal(layer.stuck, 1)
      t.strictSame(below.calls, [])
      layer.release()
      t.equal(await reading, expected)
      t.equal(layer.stuck, 0)
    }
  },
)

void t.test('closing the disk ends what is stuck, as failed', async (t) => {
  const { layer, below } = await open('read', { stuck: 'on' })
  const disk = new Guard(layer, false)
  const reading = outcome(() => disk.read(BYTES, 0))
  await disk.close()
  t.equal(await reading, 'SHUTDOWN')
  t.strictSame(below.calls, ['close'])
})

void t.test('a delayed request is done late, or at once when the disk is closed', async (t) => {
  const { layer, below } = await open('write', { delay: '1' })
  await layer.write(BYTES, 0, 0)
  t.strictSame(below.calls, ['write 0+4096'])
  const slow = await open('write', { delay: '86400000' })
  const disk = new Guard(slow.layer, false)
  const writing = outcome(() => disk.write(BYTES, 0, 0))
  await disk.close()
  t.equal(await writing, 'done')
  t.strictSame(slow.below.calls, ['write 0+4096', 'close'])
})

void t.test('wrong settings are refused', (t) => {
  const refused = (target: string, settings: Record<string, string>): void => {
    const stage = { driver: 'fault', target, settings: new Map(Object.entries(settings)) }
    t.throws(() => fault.open(stage, new RecordingDevice(), openContext()), { code: 'INVALID' })
  }
  refused('write,wipe', {})
  refused('write', { error: 'EWHAT' })
  refused('write', { probability: '1.1' })
  refused('write', { probability: '-0.1' })
  refused('write', { first: '0' })
  refused('write', { seed: '4294967296' })
  t.end()
})
