import t from 'tap'

import { READ, Ring, SLOTS, WRITE } from '../../../drivers/aio/ring.ts'

void t.test('a request crosses with all it says', (t) => {
  const here = new Ring()
  const there = new Ring(here.memory)
  here.fill(7, WRITE, 2 ** 52, 4096, 5)
  here.point(7, 2 ** 47 - 1, 12)
  t.equal(there.take(), -1, 'not before it is submitted')
  here.submit(7)
  t.equal(there.take(), 7)
  t.equal(there.take(), -1, 'once')
  t.equal(there.operation(7), WRITE)
  t.equal(there.at(7), 2 ** 52)
  t.equal(there.length(7), 4096)
  t.equal(there.flags(7), 5)
  t.equal(there.memoryOf(7), 2 ** 47 - 1)
  t.equal(there.offset(7), 12)
  t.equal(here.nextCompleted(), -1, 'not before it is completed')
  there.complete(7, -28, 99)
  t.equal(here.nextCompleted(), 7)
  t.equal(here.nextCompleted(), -1, 'once')
  t.equal(here.result(7), -28)
  t.equal(here.stoppedAt(7), 99)
  t.end()
})

void t.test('the doorbell is rung once until it is answered', (t) => {
  const here = new Ring()
  const there = new Ring(here.memory)
  for (const slot of [0, 1]) {
    here.fill(slot, READ, 0, 1, 0)
    here.submit(slot)
    there.complete(there.take(), 0, 0)
  }
  t.equal(there.mustRing(), true)
  t.equal(there.mustRing(), false)
  here.answerDoorbell()
  t.equal(here.nextCompleted(), 0)
  t.equal(here.nextCompleted(), 1)
  t.equal(there.mustRing(), true)
  t.end()
})

void t.test('a silent doorbell is not rung until it is answered, and completions show', (t) => {
  const here = new Ring()
  const there = new Ring(here.memory)
  here.silenceDoorbell()
  for (const slot of [4, 2]) {
    here.fill(slot, WRITE, 0, 1, 0)
    here.submit(slot)
    t.equal(here.hasCompleted, false)
    there.complete(there.take(), 0, 0)
    t.equal(there.mustRing(), false)
    t.equal(here.hasCompleted, true)
    t.equal(here.nextCompleted(), slot)
  }
  t.equal(here.hasCompleted, false)
  here.answerDoorbell()
  t.equal(there.mustRing(), true)
  t.end()
})

void t.test('a full table goes round many times, in order, completed out of order', (t) => {
  const here = new Ring()
  const there = new Ring(here.memory)
  const slots = Array.from({ length: SLOTS }, (_, slot) => slot)
  for (let round = 0; round < 5; round += 1) {
    for (const slot of slots) here.submit(slot)
    const taken = slots.map(() => there.take())
    t.strictSame(taken, slots)
    for (const slot of taken.toReversed()) there.complete(slot, round, 0)
    t.strictSame(
      slots.map(() => here.nextCompleted()),
      slots.toReversed(),
    )
    t.equal(here.nextCompleted(), -1)
  }
  t.end()
})

void t.test('a thread does not fall asleep over work, and ends when told to and done', (t) => {
  const here = new Ring()
  const there = new Ring(here.memory)
  here.submit(3)
  t.equal(there.sleep(), true, 'there is work')
  here.stop()
  t.equal(there.sleep(), true, 'there is still work')
  t.equal(there.take(), 3)
  t.equal(there.sleep(), false)
  t.equal(here.idle, 0)
  t.end()
})
