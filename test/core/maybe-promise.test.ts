import t from 'tap'
import { ensure, isPromise, then } from '../../core/maybe-promise.ts'

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
