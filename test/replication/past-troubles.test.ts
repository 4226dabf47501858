/** What was wrong with a primary is not wrong with the secondary that it becomes. */

import t from 'tap'

import { Fault } from '../../core/fault.ts'
import { startPair } from './comparison/one-process-pair.ts'

void t.test('a deposed primary has nothing wrong with it once it was demoted', async (t) => {
  const pair = await startPair()
  const { group, next } = pair.primary
  const deposed = next(({ event }) => event === 'REPLICATION_ERROR')
  await pair.secondary.group.promote(true)
  await deposed
  t.match(group.status().error, /deposed/)
  const { role, error, alarms } = await group.demote(false)
  t.equal(role, 'secondary')
  t.equal(error, null)
  t.ok(
    alarms.some(({ text }) => /deposed/.test(text)),
    'that it happened stays in sight',
  )
  await pair.close()
})

void t.test('nor has one whose disk failed a write before', async (t) => {
  const pair = await startPair()
  const { group, disk, image } = pair.primary
  image.failure = new Fault('IO', 'a bad sector')
  await t.rejects(async () => disk.write(Buffer.alloc(4096, 1), 0, 0), /a bad sector/)
  image.failure = undefined
  pair.cut()
  t.match(group.status().error, /a bad sector/)
  const { role, error } = await group.demote(true)
  t.equal(role, 'secondary')
  t.equal(error, null)
  await pair.close()
})
