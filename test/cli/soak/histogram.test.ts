import t from 'tap'
import fc from 'fast-check'

import { Histogram } from '../../../cli/soak/histogram.ts'

void t.test('without values there are no percentiles', (t) => {
  const histogram = new Histogram()
  t.equal(histogram.percentile(0.5), undefined)
  t.equal(histogram.most, 0)
  t.end()
})

void t.test('a percentile is at most a few percent above the exact one, and never below', (t) => {
  const values = fc.array(fc.integer({ min: 1, max: 2 ** 38 }), { minLength: 1, maxLength: 300 })
  fc.assert(
    fc.property(values, fc.constantFrom(0.01, 0.5, 0.9, 0.99, 1), (values, share) => {
      const histogram = new Histogram()
      for (const value of values) histogram.add(value)
      const sorted = [...values].sort((a, b) => a - b)
      const exact = sorted[Math.ceil(share * sorted.length) - 1]!
      const found = histogram.percentile(share)!
      return found >= exact && found <= Math.ceil(exact * 1.045)
    }),
  )
  t.end()
})

void t.test('values beyond every bucket count as the largest', (t) => {
  const histogram = new Histogram()
  for (const value of [0, 0.2, 2 ** 60]) histogram.add(value)
  t.equal(histogram.count, 3)
  t.equal(histogram.most, 2 ** 60)
  t.equal(histogram.percentile(0.5), 2, 'less than 1 counts as 1')
  t.end()
})
