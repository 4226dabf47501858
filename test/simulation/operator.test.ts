import t from 'tap'

import { ALONE, DEPOSED } from '../../replication/machine/reasons.ts'
import { awaitsDemotion } from './operator.ts'

const side = (
  reason: string | null,
  { hasAsked = true, demoting = false } = {},
): Parameters<typeof awaitsDemotion>[0] => ({
  group: { demoting, primary: { machine: { reason } } },
  guest: { hasAsked },
})

void t.test('an operator demotes a side that says so, and nobody else', (t) => {
  t.ok(
    awaitsDemotion(side(DEPOSED)),
    'its guest has used it: its changes are given up by nobody else',
  )
  for (const reason of [null, ALONE, 'refused: an operator has given up the changes of this side'])
    t.notOk(awaitsDemotion(side(reason)), `${reason}`)
  t.notOk(
    awaitsDemotion({ ...side(DEPOSED), group: { demoting: false, primary: undefined } }),
    'a secondary needs nothing',
  )
  t.end()
})

void t.test('what has to follow by itself gets no help', (t) => {
  t.notOk(awaitsDemotion(side(DEPOSED, { hasAsked: false })), 'nobody has used it')
  t.notOk(awaitsDemotion(side(DEPOSED, { demoting: true })), 'it is being demoted, and tried again')
  t.end()
})
