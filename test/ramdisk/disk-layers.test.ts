import fc from 'fast-check'
import t from 'tap'
import { Fault } from '../../core/fault.ts'
import { isPromise } from '../../core/maybe-promise.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import { DiskLayers } from '../../ramdisk/disk-layers.ts'
import { PageMemory } from '../../ramdisk/page-memory.ts'
import { step, Trial } from './layers-trial.ts'
import { ManualTimers, runUntil, settle, tagged, tagsOf, UnrulyImage } from './unruly-image.ts'
import { UnrulyRecords } from './unruly-records.ts'

void t.test(
  'a disk is right at every moment, whatever is done to it and however the image behaves',
  async (t) => {
    let runs = 0
    await fc.assert(
      fc.asyncProperty(
        fc.nat(),
        fc.array(step, { maxLength: 120, size: 'max' }),
        async (seed, steps) => {
          runs += 1
          const trial = new Trial(seed)
          for (const step of steps) await trial.perform(step)
          await trial.finish()
        },
      ),
      { numRuns: 300, interruptAfterTimeLimit: 60_000 },
    )
    t.ok(runs > 0, `${runs} histories`)
    t.end()
  },
)

function open(options: { size?: number; limit?: number } = {}) {
  const image = new UnrulyImage(options.size ?? MiB, 1)
  image.unruly = false
  const timers = new ManualTimers()
  const memory = new PageMemory(options.limit ?? 16 * MiB)
  const flushed: number[] = []
  const faults: Fault[] = []
  const layers = new DiskLayers({
    image,
    memory,
    timers,
    onFlushed: (checkpoint) => flushed.push(checkpoint),
    onError: (fault) => faults.push(fault),
  })
  const read = (at: number, length: number) => {
    const into = Buffer.alloc(length)
    const result = layers.read(into, at)
    const end = isPromise(result) ? runUntil(result, image, timers) : Promise.resolve()
    return end.then(() => tagsOf(into))
  }
  return { image, timers, memory, layers, flushed, faults, read }
}

void t.test(
  'the guest of a secondary sees the last checkpoint and its own writes, and not the primary',
  async (t) => {
    const { layers, read, image, memory, flushed } = open()
    layers.receiveWrite(tagged(1, 2 * SECTOR), 0)
    await layers.localWrite(tagged(2, 2 * SECTOR), SECTOR)
    t.same(await read(0, 4 * SECTOR), [0, 2, 2, 0])
    layers.cut()
    layers.seal(7)
    t.same(await read(0, 4 * SECTOR), [1, 1, 0, 0], 'its own writes are gone with the checkpoint')
    layers.receiveZero(0, SECTOR, true)
    t.same(await read(0, 4 * SECTOR), [1, 1, 0, 0])
    await runUntil(layers.idle(), image)
    t.same(flushed, [7])
    t.same(tagsOf(image.durable.subarray(0, 4 * SECTOR)), [1, 1, 0, 0])
    await layers.close()
    t.equal(memory.bytesInUse, 0)
  },
)

void t.test(
  'failover keeps what the guest wrote here, and nothing of an unfinished epoch',
  async (t) => {
    const { layers, read, image } = open()
    layers.receiveWrite(tagged(1, 3 * SECTOR), 0)
    layers.cut()
    layers.seal(1)
    layers.receiveWrite(tagged(2, 4 * SECTOR), 0)
    await layers.localWrite(tagged(3, SECTOR), SECTOR)
    layers.activate()
    layers.activate()
    t.equal(layers.pendingBytes, 0)
    t.same(await read(0, 4 * SECTOR), [1, 3, 1, 0], 'served before anything is in the image')
    const flush = layers.flush()
    t.ok(isPromise(flush), 'a flush waits for the layers')
    await runUntil(Promise.resolve(flush), image)
    t.equal(layers.bytesHeld, 0)
    t.same(tagsOf(image.durable.subarray(0, 4 * SECTOR)), [1, 3, 1, 0])
    await layers.close()
  },
)

void t.test(
  'a write after failover is not overwritten by the epoch that is being flushed',
  async (t) => {
    const { layers, read, image } = open()
    layers.receiveWrite(tagged(1, 4 * SECTOR), 0)
    layers.cut()
    layers.seal(1)
    await settle()
    t.equal(image.inFlight, 1, 'the epoch is being written')
    layers.activate()
    const write = layers.localWrite(tagged(2, SECTOR), SECTOR)
    await settle()
    t.equal(image.inFlight, 1, 'the guest takes its turn')
    await runUntil(Promise.resolve(write), image)
    t.same(await read(0, 4 * SECTOR), [1, 2, 1, 1])
    await runUntil(layers.idle(), image)
    t.same(tagsOf(image.content.subarray(0, 4 * SECTOR)), [1, 2, 1, 1])
    await layers.close()
  },
)

void t.test(
  'a write that fails after failover leaves in the image what reads have found since',
  async (t) => {
    const { layers, read, image } = open()
    layers.receiveWrite(tagged(1, 4 * SECTOR), 0)
    layers.cut()
    layers.seal(1)
    layers.activate()
    const flush = image.flush.bind(image)
    const flushing = new Promise<void>((begun) => {
      image.flush = () => {
        begun()
        image.flush = flush
        return flush()
      }
    })
    await runUntil(flushing, image)
    t.same(tagsOf(image.content.subarray(0, SECTOR)), [1], 'the epoch is written already')
    const write = image.write.bind(image)
    image.write = (from, at) => {
      from.copy(image.content, at, 0, SECTOR)
      image.write = write
      throw new Fault('IO', 'the disk has written a part')
    }
    await t.rejects(async () => layers.localWrite(tagged(2, 2 * SECTOR), 0), { code: 'IO' })
    t.same(await read(0, 2 * SECTOR), [1, 1], 'the layers hold what was committed')
    await runUntil(layers.idle(), image)
    t.same(await read(0, 2 * SECTOR), [1, 1], 'and so does the image when they are gone')
    await layers.close()
  },
)

void t.test(
  'a flush that failed behind the guest is an error of the next flush of the guest',
  async (t) => {
    const { layers, image, timers, faults } = open()
    layers.receiveWrite(tagged(1, SECTOR), 0)
    layers.cut()
    layers.seal(1)
    layers.activate()
    let failures = 1
    const flush = image.flush.bind(image)
    image.flush = () => {
      failures -= 1
      if (failures === 0) throw new Fault('IO', 'the disk lost what it had cached')
      return flush()
    }
    await runUntil(layers.idle(), image, timers)
    t.equal(faults.length, 1)
    t.throws(() => layers.flush(), { code: 'IO' })
    await runUntil(Promise.resolve(layers.flush()), image)
    await layers.close()
  },
)

void t.test('at the memory limit a write is refused with everything left as it was', async (t) => {
  const { layers, memory, read } = open({ size: 8 * MiB, limit: MiB })
  let count = 0
  while (memory.canHold(4096)) {
    layers.receiveWrite(tagged(1, 4096), count * 4096)
    count += 1
  }
  const held = layers.bytesHeld
  t.throws(() => layers.receiveWrite(tagged(1, 512 * 1024), 4 * MiB), { code: 'NO_MEMORY' })
  t.equal(layers.bytesHeld, held)
  t.same(await read(0, SECTOR), [0])
  layers.discardPending()
  t.equal(memory.bytesInUse, 0)
  await layers.close()
})

void t.test('closing stops the flush, keeps nothing, and refuses what comes after', async (t) => {
  const { layers, memory, image, flushed } = open()
  layers.receiveWrite(tagged(1, 512 * 1024), 0)
  layers.cut()
  layers.seal(1)
  const idle = layers.idle()
  const over = t.rejects(idle, { code: 'SHUTDOWN' })
  await settle()
  t.equal(image.inFlight, 2)
  await runUntil(layers.close(), image)
  await over
  await layers.close()
  t.equal(memory.bytesInUse, 0)
  t.same(flushed, [])
  t.throws(() => layers.read(Buffer.alloc(SECTOR), 0), { code: 'SHUTDOWN' })
  t.throws(() => layers.localWrite(Buffer.alloc(SECTOR), 0), { code: 'SHUTDOWN' })
  t.throws(() => layers.flush(), { code: 'SHUTDOWN' })
})

void t.test(
  'who waits for memory finds the epoch that is current when some comes back',
  async (t) => {
    const { layers, memory, read, image } = open()
    layers.receiveWrite(tagged(1, SECTOR), 0)
    await layers.localWrite(tagged(2, SECTOR), 0)
    memory.whenReleased(() => layers.receiveWrite(tagged(3, SECTOR), SECTOR))
    layers.cut()
    layers.seal(1)
    t.same(await read(0, 2 * SECTOR), [1, 0], 'what came after the checkpoint is not part of it')
    t.equal(layers.pendingBytes, SECTOR)
    await runUntil(layers.close(), image)
  },
)

void t.test(
  'what is spilled is found where it lies, under and over what is in memory',
  async (t) => {
    const { layers, read, image, flushed } = open()
    const records = new UnrulyRecords(1)
    records.calm()
    const spill = (tag: number, first: number, count: number): void => {
      const bytes = tagged(tag, count * SECTOR)
      const place = records.add(first * SECTOR, bytes)
      layers.spillWrite(first * SECTOR, bytes.length, place, records)
    }
    layers.receiveWrite(tagged(1, 6 * SECTOR), 0)
    spill(2, 2, 3)
    layers.spillZero(3 * SECTOR, SECTOR, true, records)
    spill(3, 7, 1)
    t.ok(layers.isSpilling)
    t.equal(layers.pendingBytes, 6 * SECTOR, 'what is newer takes the place of what is older')
    t.equal(layers.spilledBytes, 3 * SECTOR)
    t.throws(() => layers.receiveWrite(tagged(9, SECTOR), 0), /what is spilled stays the newest/)
    layers.cut()
    layers.seal(1)
    t.notOk(layers.isSpilling, 'the next epoch begins in memory')
    await layers.localWrite(tagged(4, SECTOR), 4 * SECTOR)
    t.same(await read(0, 9 * SECTOR), [1, 1, 2, 0, 4, 1, 0, 3, 0])
    await runUntil(layers.idle(), image)
    t.same(tagsOf(image.durable.subarray(0, 9 * SECTOR)), [1, 1, 2, 0, 2, 1, 0, 3, 0])
    t.same(flushed, [1], 'once, when all parts are there')
    const sectors = image.log.reduce((sum, { length }) => sum + length / SECTOR, 0)
    t.equal(sectors, 7, 'and nothing was written twice')
    t.equal(layers.spilledBytes, 0)
  },
)

void t.test('a record that is not what was written is told, and never used', async (t) => {
  const { layers, read, image, faults, timers, flushed } = open()
  const records = new UnrulyRecords(1)
  records.calm()
  const place = records.add(0, tagged(5, SECTOR))
  layers.spillWrite(0, SECTOR, place, records)
  layers.cut()
  layers.seal(1)
  records.failing = true
  await t.rejects(async () => read(0, 2 * SECTOR), { code: 'IO' })
  while (faults.length < 2) {
    await settle()
    image.finishOne(0)
    timers.fireOne(0)
  }
  t.same(flushed, [], 'and the epoch is not in the image')
  t.same(tagsOf(image.content.subarray(0, SECTOR)), [0])
  records.failing = false
  await runUntil(layers.idle(), image, timers)
  t.same(tagsOf(image.durable.subarray(0, SECTOR)), [5])
})
