import fc from 'fast-check'
import t from 'tap'

import { KiB, MiB } from '../../../core/units.ts'
import { SendWindow } from '../../../replication/machine/send-window.ts'

const LEAST = 512 * KiB

interface Course {
  /** Bytes that arrived in the last half of the time, a millisecond. */
  readonly rate: number
  /** Bytes under way at its end. */
  readonly underWay: number
}

/**
 * A sender that sends whatever may complete, over a way of `delayMs`, to a receiver that takes `rate` bytes a millisecond and
 * answers at once, for `ms` milliseconds.
 */
function run(window: SendWindow, frame: number, rate: number, delayMs: number, ms: number): Course {
  const arrivals: { readonly atMs: number; readonly position: number }[] = []
  let [sent, freeMs, arrived, late] = [0, 0, 0, 0]
  for (let nowMs = 0; nowMs < ms; nowMs += 0.05) {
    while (sent <= window.within) {
      window.send(frame, nowMs)
      sent += 1
      freeMs = Math.max(freeMs, nowMs) + frame / rate
      arrivals.push({ atMs: freeMs + delayMs, position: sent })
    }
    for (let next = arrivals[0]; next !== undefined && next.atMs <= nowMs; next = arrivals[0]) {
      arrivals.shift()
      window.receive(next.position, nowMs)
      arrived = next.position
      if (nowMs > ms / 2) late += 1
    }
  }
  return { rate: (late * frame * 2) / ms, underWay: (sent - arrived) * frame }
}

void t.test('little is never held up', (t) => {
  const window = new SendWindow(LEAST)
  for (let position = 1; position <= 100; position += 1) {
    window.send(4 * KiB, position)
    t.equal(window.within, position)
  }
  t.end()
})

void t.test('what is more than the limit completes when the peer has enough of it', (t) => {
  const window = new SendWindow(LEAST)
  for (let position = 1; position <= 8; position += 1) window.send(256 * KiB, 0)
  t.equal(window.within, 4, '1 MiB at first')
  window.receive(1, 0.5)
  t.equal(window.within, 6, 'it was not waited for long: there may be more')
  window.receive(8, 1)
  t.equal(window.within, 8)
  t.end()
})

void t.test('a slow receiver near by has little to work off; a checkpoint waits for that', (t) => {
  for (const rate of [100, 300, 1000].map((each) => each * KiB)) {
    const { rate: reached, underWay } = run(new SendWindow(LEAST), 64 * KiB, rate, 0.1, 500)
    t.ok(reached > rate * 0.9, `${rate} bytes a ms: it is kept busy`)
    t.ok(underWay <= Math.max(576 * KiB, rate * 2.5), `and has ${underWay} bytes before it`)
  }
  t.end()
})

void t.test('a long way is filled', (t) => {
  const [rate, delayMs] = [120 * KiB, 20]
  const { rate: reached } = run(new SendWindow(LEAST), 64 * KiB, rate, delayMs, 4000)
  t.ok(reached > rate * 0.9, `${reached} of ${rate} bytes a ms`)
  t.end()
})

void t.test('a single write of any size completes', (t) => {
  const window = new SendWindow(LEAST)
  for (let position = 1; position <= 256; position += 1) window.send(256 * KiB, 0)
  for (let position = 1; position <= 256; position += 1) window.receive(position, 10 * position)
  t.equal(window.within, 256)
  t.end()
})

void t.test(
  'whatever is sent and told: within never goes back, and the limit keeps its bounds',
  (t) => {
    const step = fc.record({
      bytes: fc.integer({ min: 0, max: 300 * KiB }),
      told: fc.nat(3),
      ms: fc.nat(30),
    })
    fc.assert(
      fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
        const window = new SendWindow(LEAST)
        const ends = [0]
        let [received, within, nowMs] = [0, 0, 0]
        for (const { bytes, told, ms } of steps) {
          window.send(bytes, nowMs)
          ends.push(ends.at(-1)! + bytes)
          nowMs += ms
          received = Math.min(received + told, ends.length - 1)
          window.receive(received, nowMs)
          if (window.within < within || window.within < received) return false
          within = window.within
          if (window.limit < LEAST || window.limit > 16 * MiB) return false
          // The next one would be too much.
          const next = ends[within + 1]
          if (next !== undefined && next - ends[received]! <= window.limit) return false
        }
        return true
      }),
    )
    t.end()
  },
)
