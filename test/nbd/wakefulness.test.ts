import t from 'tap'

import { Wakefulness } from '../../nbd/wakefulness.ts'

const isAwake = (): boolean => process.getActiveResourcesInfo().includes('Immediate')

/** Rounds of the event loop until it may sleep; other immediates of the test's surroundings end by themselves. */
async function untilAsleep(): Promise<number> {
  for (let rounds = 0; ; rounds += 1) {
    if (!isAwake()) return rounds
    await new Promise((resolve) => setTimeout(resolve, 0))
  }
}

void t.test('the loop stays awake after an answer, for a moment', async (t) => {
  await untilAsleep()
  const wakefulness = new Wakefulness()
  wakefulness.answered()
  t.ok(isAwake())
  await untilAsleep()
})

void t.test('after vain moments it sleeps more often', async (t) => {
  await untilAsleep()
  const wakefulness = new Wakefulness()
  let awake = 0
  for (let each = 0; each < 100; each += 1) {
    wakefulness.answered()
    if (isAwake()) awake += 1
    await untilAsleep()
  }
  t.ok(awake > 3 && awake < 20, `${awake} of 100`)
})
