import t from 'tap'
import { ensure, isPromise, then, together } from '../../core/maybe-promise.ts'

void t.test('what is there is passed on at once, what is not is waited for', async (t) => {
  t.equal(
    then(1, (value) => value + 1),
    2,
  )
  const later = then(Promise.resolve(1), (value) => value + 1)
  t.ok(isPromise(later))
  t.equal(await later, 2)
  await t.rejects(Promise.resolve(then(Promise.reject(new Error('no')), () => 1)), {
    message: 'no',
  })
})

void t.test('the end is told once, however it ends', async (t) => {
  let ends = 0
  const done = () => (ends += 1)
  t.equal(
    ensure(() => 7, done),
    7,
  )
  t.equal(ends, 1)
  t.throws(
    () =>
      ensure(() => {
        throw new Error('no')
      }, done),
    { message: 'no' },
  )
  t.equal(ends, 2)
  const later = ensure(() => Promise.resolve(8), done)
  t.equal(ends, 2)
  t.equal(await later, 8)
  t.equal(ends, 3)
  await t.rejects(Promise.resolve(ensure(() => Promise.reject(new Error('no')), done)))
  t.equal(ends, 4)
})

void t.test('pieces of work that finish at once need no promise', (t) => {
  const started: number[] = []
  t.equal(
    together(3, (index) => void started.push(index)),
    undefined,
  )
  t.same(started, [0, 1, 2])
  t.end()
})

void t.test('pieces of work are awaited, also when one of them fails', async (t) => {
  let finish: () => void = () => undefined
  const slow = new Promise<void>((resolve) => (finish = resolve))
  let ended = false
  const work = together(4, (index) => {
    if (index === 0) return slow.then(() => void (ended = true))
    if (index === 2) throw new Error('no')
    return undefined
  })
  finish()
  await t.rejects(Promise.resolve(work), { message: 'no' })
  t.ok(ended, 'the failure is told when nobody uses the buffer any more')
  const late = together(2, (index) => (index === 0 ? Promise.reject(new Error('late')) : undefined))
  await t.rejects(Promise.resolve(late), { message: 'late' })
  t.throws(
    () =>
      together(1, () => {
        throw new Error('at once')
      }),
    { message: 'at once' },
  )
})
