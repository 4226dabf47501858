import fc from 'fast-check'
import t from 'tap'
import { BufferPool, type PoolSlot } from '../../core/buffer-pool.ts'
import { KiB, MiB } from '../../core/units.ts'

const size = fc.oneof(fc.integer({ min: 0, max: 20 * KiB }), fc.integer({ min: 1, max: 3 * MiB }))
const step = fc.record({ size, release: fc.boolean(), which: fc.nat() })

void t.test('a pool keeps within its limit, and gives no memory to two holders', (t) => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80, size: 'max' }), (steps) => {
      const pool = new BufferPool(4 * MiB)
      const held: { slot: PoolSlot; mark: number }[] = []
      let mark = 0
      for (const { size, release, which } of steps) {
        if (release) {
          const [one] = held.splice(which % Math.max(1, held.length), 1)
          if (one === undefined) continue
          if (!one.slot.bytes.equals(Buffer.alloc(one.slot.bytes.length, one.mark)))
            throw new Error('shared memory')
          pool.release(one.slot)
        } else {
          const slot = pool.tryAcquire(size)
          if (slot === undefined) continue
          if (slot.bytes.length < size) throw new Error('too small')
          if (slot.first(size).length !== size) throw new Error('not the part asked for')
          mark = (mark + 1) % 256
          slot.bytes.fill(mark)
          held.push({ slot, mark })
        }
        const sum = held.reduce((bytes, { slot }) => bytes + slot.bytes.length, 0)
        if (pool.bytesInUse !== sum || sum > pool.limit) throw new Error('miscounted')
        if (pool.bytesAllocated < sum) throw new Error('more in use than there is')
      }
    }),
    { numRuns: 25 },
  )
  t.end()
})

void t.test('memory that was given back is given out again', (t) => {
  const pool = new BufferPool(8 * MiB)
  const slot = pool.tryAcquire(5000)
  t.ok(slot)
  const allocated = pool.bytesAllocated
  pool.release(slot!)
  t.equal(pool.tryAcquire(8 * KiB), slot)
  t.equal(pool.bytesAllocated, allocated)
  t.end()
})

void t.test('buffers are in shared memory', (t) => {
  t.ok(new BufferPool(MiB).tryAcquire(1)?.bytes.buffer instanceof SharedArrayBuffer)
  t.end()
})

void t.test('at the limit there is nothing, until something comes back', (t) => {
  const pool = new BufferPool(8 * KiB)
  const slots = [pool.tryAcquire(4096), pool.tryAcquire(4096)]
  t.equal(pool.tryAcquire(1), undefined)
  let woken = 0
  pool.whenReleased(() => (woken += 1))
  t.equal(woken, 0)
  pool.release(slots[0]!)
  t.equal(woken, 1)
  pool.release(slots[1]!)
  t.equal(woken, 1, 'once')
  t.ok(pool.tryAcquire(1))
  t.end()
})

void t.test('one equal part is one Buffer object', (t) => {
  const slot = new BufferPool(MiB).tryAcquire(4096)
  t.equal(slot?.first(100), slot?.first(100))
  t.not(slot?.first(100), slot?.first(101))
  const [data, message] = [slot?.part(64, 1024), slot?.part(36, 1052)]
  t.equal(slot?.part(64, 1024), data)
  t.equal(slot?.part(36, 1052), message, 'of two parts that take turns')
  t.equal((data?.byteOffset ?? 0) - (message?.byteOffset ?? 0), 28)
  t.equal(message?.length, 1052)
  t.end()
})

void t.test('releasing twice is a bug that stops', (t) => {
  const pool = new BufferPool(MiB)
  const slot = pool.tryAcquire(1)!
  pool.release(slot)
  t.throws(() => pool.release(slot), { name: 'AssertionFailure' })
  t.end()
})

void t.test('changing sizes do not make a pool keep ever more memory', (t) => {
  const pool = new BufferPool(16 * MiB)
  for (let size = 4 * KiB; size <= 16 * MiB; size *= 2)
    for (let round = 0; round < 3; round += 1) {
      const held: PoolSlot[] = []
      for (let slot = pool.tryAcquire(size); slot !== undefined; slot = pool.tryAcquire(size))
        held.push(slot)
      t.equal(pool.bytesInUse, 16 * MiB, `all of it, in pieces of ${size}`)
      for (const slot of held) pool.release(slot)
    }
  t.ok(pool.bytesAllocated <= 3 * pool.limit, `${pool.bytesAllocated} bytes are kept`)
  t.end()
})
