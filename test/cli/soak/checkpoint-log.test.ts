import t from 'tap'

import { BlockHistory } from '../../../cli/soak/block-history.ts'
import { CheckpointLog, type GroupBounds } from '../../../cli/soak/checkpoint-log.ts'

function write(history: BlockHistory, acknowledged = true): void {
  history.issue(0, 1, false)
  if (acknowledged) history.acknowledge(0, 1)
}

/** Of the one block of the one disk. */
function range(bounds: GroupBounds | string): [number, number] | string {
  if (typeof bounds === 'string') return bounds
  return [bounds[0]!.acknowledged[0]!, bounds[0]!.issued[0]!]
}

void t.test(
  'a checkpoint has what was acknowledged before it, and nothing issued after it',
  (t) => {
    const history = new BlockHistory(1, 512)
    const log = new CheckpointLog([history], 5)
    t.same(range(log.boundsOf(5)), [0, 0], 'the beginning counts as one')
    write(history)
    log.begin()
    write(history, false)
    t.equal(log.confirm(6), undefined)
    history.acknowledge(0, 1)
    write(history)
    t.same(range(log.boundsOf(6)), [1, 2])
    t.match(log.boundsOf(5), /at checkpoint 5, though 6 was reported/)
    t.match(log.boundsOf(7), /none was asked for after 6/)
    t.equal(log.confirmed, 6)
    t.end()
  },
)

void t.test('attempts that were not confirmed may all have been committed', (t) => {
  const history = new BlockHistory(1, 512)
  const log = new CheckpointLog([history], 0)
  write(history)
  log.begin()
  log.confirm(1)
  write(history)
  for (let attempt = 0; attempt < 2; attempt += 1) {
    log.begin()
    write(history)
    log.fail()
    write(history)
  }
  t.same(range(log.boundsOf(1)), [1, 1])
  t.same(range(log.boundsOf(2)), [2, 5])
  t.same(range(log.boundsOf(3)), [2, 5])
  log.begin()
  log.confirm(4)
  t.same(range(log.boundsOf(4)), [6, 6])
  t.type(log.boundsOf(5), 'string', 'what was open is settled by a later checkpoint')
  t.end()
})

void t.test('a checkpoint number that does not grow is reported', (t) => {
  const log = new CheckpointLog([new BlockHistory(1, 512)], 3)
  log.begin()
  t.match(log.confirm(3), /checkpoint 3 was reported after checkpoint 3/)
  t.end()
})
