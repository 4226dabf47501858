import t from 'tap'

import { Alarms } from '../../replication/alarms.ts'
import type { GroupEvent, Protection } from '../../replication/group.ts'

const protection = (state: Protection, reason: string | null = null): GroupEvent => ({
  event: 'REPLICATION_PROTECTION',
  data: { group: 'vm', protection: state, reason },
})
const failure = (error: string): GroupEvent => ({
  event: 'REPLICATION_ERROR',
  data: { group: 'vm', error },
})

function hearing(...events: readonly GroupEvent[]): { alarms: Alarms; texts: () => string[] } {
  const alarms = new Alarms(() => 0)
  for (const event of events) alarms.hear(event)
  return { alarms, texts: () => alarms.list().map(({ text }) => text) }
}

void t.test('a pair that was never protected has lost nothing', (t) => {
  const { texts } = hearing(protection('resyncing', 'a copy'), protection('unprotected', 'cut'))
  t.same(texts(), [])
  t.end()
})

void t.test('a loss of protection stays when it has healed, until it is acknowledged', (t) => {
  const { alarms, texts } = hearing(
    protection('protected'),
    protection('unprotected', 'the link broke'),
    protection('resyncing', 'sending what changed'),
    protection('protected'),
  )
  t.same(texts(), ['protection was lost: the link broke'])
  alarms.acknowledge()
  t.same(texts(), [])
  alarms.hear(protection('frozen', 'the link broke'))
  t.same(texts(), ['protection was lost: the link broke'], 'the next loss is a new one')
  t.end()
})

void t.test('a copy that becomes a mixture is told once', (t) => {
  const { texts } = hearing(
    protection('inconsistent', 'the link broke in a copy'),
    protection('inconsistent', 'another reason'),
  )
  t.same(texts(), ['this copy was made a mixture: the link broke in a copy'])
  t.end()
})

void t.test('the same error again is counted, with its times', (t) => {
  let nowMs = 100
  const alarms = new Alarms(() => nowMs)
  alarms.hear(failure('the disk is full'))
  nowMs = 250
  alarms.hear(failure('the disk is full'))
  nowMs = 300
  t.same(alarms.list(), [{ text: 'the disk is full', count: 2, firstAgeMs: 200, lastAgeMs: 50 }])
  t.end()
})

void t.test('20: alarms are bounded, and what made room is told', (t) => {
  const { texts } = hearing(
    ...Array.from({ length: 1000 }, (_, index) => failure(`error ${index}`)),
  )
  t.equal(texts().length, 33)
  t.match(texts()[0], /^968 older alarms were dropped/)
  t.equal(texts().at(-1), 'error 999')
  t.end()
})
