import t from 'tap'

import { alive } from './alive.ts'

void t.test('a run in which nothing happens any more is given up', async (t) => {
  const never = new Promise<never>(() => undefined)
  await t.rejects(alive(never, { count: 7 }, 1), { message: /waits for what never comes/ })
})

void t.test('one that goes on is waited for, however long it takes', async (t) => {
  let end: (result: string) => void = () => undefined
  const run = new Promise<string>((resolve) => {
    end = resolve
  })
  let looks = 0
  const scheduler = {
    get count(): number {
      looks += 1
      if (looks === 20) end('it has ended')
      return looks
    },
  }
  t.equal(await alive(run, scheduler, 1), 'it has ended')
  t.equal(looks, 20, 'and is looked at no more')
})

void t.test('what a run fails with is told', async (t) => {
  await t.rejects(alive(Promise.reject(new Error('5: lost')), { count: 0 }, 1), {
    message: '5: lost',
  })
})
