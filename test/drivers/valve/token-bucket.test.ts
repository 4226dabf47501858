import assert from 'node:assert/strict'

import fc from 'fast-check'
import t from 'tap'

import { TokenBucket } from '../../../drivers/valve/token-bucket.ts'

void t.test('a full bucket passes its burst at once, then the rate', (t) => {
  const bucket = new TokenBucket(100, 200, 0)
  t.equal(bucket.waitMs(200, 0), 0)
  bucket.take(200)
  t.equal(bucket.waitMs(1, 0), 10)
  t.equal(bucket.waitMs(50, 0), 500)
  t.equal(bucket.waitMs(50, 500), 0)
  t.end()
})

void t.test('it never holds more than its burst', (t) => {
  const bucket = new TokenBucket(100, 200, 0)
  bucket.take(200)
  t.equal(bucket.waitMs(200, 1e9), 0)
  bucket.take(200)
  t.equal(bucket.waitMs(100, 1e9), 1000)
  t.end()
})

void t.test(
  'a request larger than the burst passes when it is full, and is paid off later',
  (t) => {
    const bucket = new TokenBucket(100, 10, 0)
    t.equal(bucket.waitMs(1000, 0), 0)
    bucket.take(1000)
    t.equal(bucket.waitMs(1, 0), 9910)
    t.equal(bucket.waitMs(0, 0), 0, 'what costs nothing owes nothing')
    t.end()
  },
)

void t.test(
  'over any time at most rate * t + burst passes, and a client that waits as told gets the rate',
  (t) => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1e6 }),
        fc.integer({ min: 1, max: 1e5 }),
        fc.array(fc.tuple(fc.nat(1e5), fc.nat(200)), { minLength: 1, maxLength: 60 }),
        (rate, burst, requests) => {
          const bucket = new TokenBucket(rate, burst, 0)
          let nowMs = 0
          let passed = 0
          for (const [wanted, idleMs] of requests) {
            const cost = Math.min(wanted, burst)
            nowMs += idleMs
            const waitMs = bucket.waitMs(cost, nowMs)
            if (waitMs > 0) {
              // It says no more than needed: a little earlier the request would still have to wait.
              assert.ok(bucket.waitMs(cost, nowMs + waitMs * 0.9) > 0)
              nowMs += waitMs * 1.000001 + 1e-6
              assert.ok(bucket.waitMs(cost, nowMs) < 1e-3)
            }
            bucket.take(cost)
            passed += cost
            assert.ok(passed <= (rate * nowMs) / 1000 + burst + 1, `${passed} in ${nowMs} ms`)
          }
        },
      ),
    )
    t.end()
  },
)
