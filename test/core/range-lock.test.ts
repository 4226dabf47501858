import fc from 'fast-check'
import t from 'tap'
import { isPromise } from '../../core/maybe-promise.ts'
import { RangeLock, type RangeTicket } from '../../core/range-lock.ts'

void t.test('a free range is taken at once, and ranges that only touch do not meet', (t) => {
  const lock = new RangeLock()
  t.notOk(isPromise(lock.acquire(0, 10)))
  t.notOk(isPromise(lock.acquire(10, 10)))
  t.equal(lock.size, 2)
  t.end()
})

void t.test('a waiter comes before who asked later, also for what is free already', async (t) => {
  const lock = new RangeLock()
  const first = await lock.acquire(0, 10)
  const order: string[] = []
  const second = Promise.resolve(lock.acquire(5, 10)).then((ticket) => {
    order.push('second')
    lock.release(ticket)
  })
  const third = lock.acquire(12, 3)
  t.ok(isPromise(third), '12 to 15 is free, but spoken for')
  const done = Promise.resolve(third).then((ticket) => {
    order.push('third')
    lock.release(ticket)
  })
  lock.release(first)
  await Promise.all([second, done])
  t.same(order, ['second', 'third'])
  t.equal(lock.size, 0)
})

void t.test('releasing twice is a bug that stops', async (t) => {
  const lock = new RangeLock()
  const ticket = await lock.acquire(0, 1)
  lock.release(ticket)
  t.throws(() => lock.release(ticket), { name: 'AssertionFailure' })
})

const step = fc.record({ at: fc.nat(40), length: fc.integer({ min: 1, max: 15 }), give: fc.nat() })

void t.test(
  'held ranges never overlap, overlapping ones are granted in order, and all in the end',
  async (t) => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 40, size: 'max' }), async (steps) => {
        const lock = new RangeLock()
        const held: { ticket: RangeTicket; order: number }[] = []
        const waiting = new Set<{ at: number; end: number; order: number }>()
        const grant = (ticket: RangeTicket, order: number) => {
          const meets = (other: { at: number; end: number }) =>
            other.at < ticket.end && ticket.at < other.end
          if (held.some((other) => meets(other.ticket))) throw new Error('two hold the same')
          for (const other of waiting) {
            if (other.order === order) waiting.delete(other)
            else if (other.order < order && meets(other)) throw new Error('overtaken')
          }
          held.push({ ticket, order })
        }
        const releaseOne = async (which: number) => {
          const [one] = held.splice(which % Math.max(1, held.length), 1)
          if (one !== undefined) lock.release(one.ticket)
          await new Promise((resolve) => setImmediate(resolve))
        }
        for (const [order, { at, length, give }] of steps.entries()) {
          const result = lock.acquire(at, length)
          if (isPromise(result)) {
            waiting.add({ at, end: at + length, order })
            void result.then((ticket) => grant(ticket, order))
          } else grant(result, order)
          if (lock.size !== held.length + waiting.size) throw new Error('miscounted')
          if (give % 3 === 0) await releaseOne(give)
        }
        while (held.length > 0) await releaseOne(0)
        if (waiting.size > 0 || lock.size > 0) throw new Error('somebody waits for ever')
      }),
    )
    t.end()
  },
)
