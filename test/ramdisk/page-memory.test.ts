import t from 'tap'
import { KiB, MiB } from '../../core/units.ts'
import { Epoch } from '../../ramdisk/epoch.ts'
import { PageMemory, SLAB } from '../../ramdisk/page-memory.ts'

void t.test('memory in use is counted slab by slab and refused at the limit', (t) => {
  const memory = new PageMemory(3 * SLAB + 1)
  t.equal(memory.slabsLeft, 3)
  const slabs = [memory.take(), memory.take(), memory.take()]
  t.equal(memory.bytesInUse, 3 * SLAB)
  t.equal(memory.take(), undefined)
  const extra = memory.takeBeyondLimit()
  t.equal(memory.bytesInUse, 4 * SLAB)
  t.equal(memory.slabsLeft, 0)
  memory.give(extra)
  memory.giveAll(slabs.filter((slab) => slab !== undefined))
  t.equal(memory.bytesInUse, 0)
  t.equal(memory.bytesAllocated, 4 * SLAB)
  t.end()
})

void t.test('memory that was used is used again', (t) => {
  const memory = new PageMemory(MiB)
  const slab = memory.takeBeyondLimit()
  memory.give(slab)
  t.equal(memory.take(), slab)
  t.equal(memory.bytesAllocated, SLAB)
  t.end()
})

void t.test('a slab that is given back twice is a bug that stops', (t) => {
  const memory = new PageMemory(MiB)
  const slab = memory.takeBeyondLimit()
  memory.give(slab)
  t.throws(() => memory.give(slab), { name: 'AssertionFailure' })
  t.end()
})

void t.test('who waits for memory is called once, when some came back', (t) => {
  const memory = new PageMemory(MiB)
  const slab = memory.takeBeyondLimit()
  let calls = 0
  memory.whenReleased(() => (calls += 1))
  memory.giveAll([])
  t.equal(calls, 0)
  memory.give(slab)
  t.equal(calls, 1)
  memory.give(memory.takeBeyondLimit())
  t.equal(calls, 1)
  t.end()
})

void t.test('a steady load keeps its memory, and a large epoch is forgotten over time', (t) => {
  const memory = new PageMemory(64 * MiB)
  const hold = (bytes: number) => {
    const epoch = new Epoch(memory, 64 * MiB)
    epoch.write(Buffer.alloc(bytes, 1), 0)
    return epoch
  }
  hold(32 * MiB).release()
  const peak = memory.bytesAllocated
  t.ok(peak >= 32 * MiB)
  for (let round = 0; round < 10; round += 1) hold(32 * MiB).release()
  t.equal(memory.bytesAllocated, peak, 'the same memory served every epoch')
  for (let round = 0; round < 2000; round += 1) hold(64 * KiB).release()
  t.ok(memory.bytesAllocated <= 1 * MiB, `${memory.bytesAllocated} bytes are kept`)
  const steady = memory.bytesAllocated
  for (let round = 0; round < 300; round += 1) hold(64 * KiB).release()
  t.ok(memory.bytesAllocated >= SLAB, 'what each epoch needs stays')
  t.ok(memory.bytesAllocated <= steady)
  memory.trim()
  t.equal(memory.bytesAllocated, 0)
  t.end()
})
