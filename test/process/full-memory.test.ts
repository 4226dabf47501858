/**
 * Limits of memory and journal that are reached under a real pair: each ends in the policy that
 * docs/replication.md names, an event, and an alarm that stays; no process ends, nothing acknowledged is lost, and another
 * group of the same servers is served meanwhile.
 */

import t, { type Test } from 'tap'

import { below, seededRandom } from '../../core/seeded-random.ts'
import { MiB, SECTOR } from '../../core/units.ts'
import { protectionOf, stateOf } from '../support/replica-pair.ts'
import {
  alarmStays,
  endsEqual,
  lossReported,
  othersServe,
  reported,
  SIZE,
  untilState,
  ward,
  write,
  type Ward,
} from '../support/ward.ts'

/** The pair has given an epoch up, and says so on both sides; then it is whole again without anybody's help. */
async function givenUp(t: Test, pair: Ward, what: RegExp): Promise<void> {
  const { primary, secondary } = pair
  await reported(secondary.qmp, 'REPLICATION_PRESSURE', 'sick')
  await reported(primary.qmp, 'REPLICATION_PRESSURE', 'sick')
  await untilState(secondary.qmp, ({ alarms }) => alarms.length > 0)
  for (const { qmp } of [primary, secondary]) {
    await lossReported(qmp)
    await alarmStays(t, qmp, what)
  }
  await othersServe(t, pair)
  await protectionOf(primary.qmp, 'sick', 'protected')
  for (const { qmp } of [primary, secondary]) await alarmStays(t, qmp, what)
  await endsEqual(t, pair)
}

void t.test('an epoch that fills a memory without a journal behind it is given up', async (t) => {
  const pair = await ward(t, { settings: ['memory=8M', 'durability=memory'] })
  const { primary, guests } = pair
  await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
  await write(guests.sick, 1, 0, SIZE)
  await givenUp(t, pair, /outgrew.*its memory, of 8 MiB \(memory=\).*checkpoint more often/)
})

void t.test('an epoch that fills its journal is given up', async (t) => {
  const pair = await ward(t, { settings: ['memory=8M', 'journal=128M'] })
  const { primary, guests } = pair
  await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
  for (let round = 1; round <= 9; round += 1) await write(guests.sick, round, 0, SIZE)
  await givenUp(t, pair, /outgrew.*its journal, of 128 MiB \(journal=\).*checkpoint more often/)
})

void t.test('an epoch whose index alone fills the memory is given up', async (t) => {
  const size = 320 * MiB
  const pair = await ward(t, { settings: ['memory=8M', 'journal=1G'], size })
  const { primary, secondary, guests } = pair
  await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
  // Data fills its part of the memory; then single sectors far from each other fill the rest, with what it takes to find them.
  await write(guests.sick, 1, 0, 8 * MiB)
  const random = seededRandom(1)
  let lost = false
  void untilState(secondary.qmp, ({ alarms }) => alarms.length > 0).then(() => (lost = true))
  while (!lost) {
    const turn = Array.from({ length: 64 }, () => {
      const at = below(random, size / SECTOR) * SECTOR
      return guests.sick.write(Buffer.alloc(SECTOR, 2), at)
    })
    await Promise.all(turn)
  }
  t.ok((await stateOf(secondary.qmp, 'sick')).ramdiskBytes <= 8 * MiB)
  await givenUp(t, pair, /outgrew.*its memory for the index of its journal, of 8 MiB \(memory=\)/)
})

void t.test(
  'an epoch larger than the memory is kept in the journal, and pressure is told',
  async (t) => {
    const pair = await ward(t, { settings: ['memory=8M'] })
    const { primary, secondary, guests } = pair
    await write(guests.sick, 1, 0, SIZE)
    await reported(secondary.qmp, 'REPLICATION_PRESSURE', 'sick')
    await othersServe(t, pair)
    const { protection, alarms } = await stateOf(primary.qmp, 'sick')
    t.equal(protection, 'protected')
    t.same(alarms, [], 'nothing was lost')
    await endsEqual(t, pair)
  },
)
