/**
 * Disks that are full or dead under a real pair: each ends in the policy that docs/replication.md names, an event and a
 * state; no process ends, nothing acknowledged is lost, and other groups of the same servers do not notice.
 */

import { rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import t from 'tap'
import { protectionOf, stateOf } from '../support/replica-pair.ts'
import {
  alarmStays,
  attach,
  BLOCK,
  endsEqual,
  GROUPS,
  lossReported,
  othersServe,
  reported,
  SIZE,
  untilState,
  ward,
  write,
} from '../support/ward.ts'

const MiB = 1 << 20

void t.test('a full disk under the journal: no checkpoint, an event, and it heals', async (t) => {
  const pair = await ward(t, {
    smallState: { side: 'secondary', mebibytes: 24 },
    // The other group has nothing on that disk.
    others: ['durability=memory'],
  })
  const { primary, secondary, guests } = pair
  const filler = path.join(secondary.state, 'filler')
  await t.rejects(writeFile(filler, Buffer.alloc(24 * MiB)), { code: 'ENOSPC' })
  await write(guests.sick, 1, 0, 8 * MiB)
  await reported(secondary.qmp, 'REPLICATION_ERROR', 'sick')
  await untilState(primary.qmp, ({ protection }) => protection !== 'protected')
  await t.rejects(primary.qmp.execute('replication-checkpoint', { group: 'sick' }))
  const full = /cannot .* the journal: .*(ENOSPC|no space).*free space there/i
  t.match((await stateOf(secondary.qmp, 'sick')).error, full)
  for (const { qmp } of [primary, secondary]) await lossReported(qmp)
  await othersServe(t, pair)
  await write(guests.sick, 2, 8 * MiB, MiB)
  await rm(filler)
  await protectionOf(primary.qmp, 'sick', 'protected')
  for (const { qmp } of [primary, secondary]) await alarmStays(t, qmp, full)
  await endsEqual(t, pair)
})

void t.test(
  'a full disk under a primary’s maps: writes to new regions fail, no other',
  async (t) => {
    const pair = await ward(t, { smallState: { side: 'primary', mebibytes: 1 } })
    const { primary, guests } = pair
    await write(guests.sick, 1, 0, MiB)
    const filler = path.join(primary.state, 'filler')
    await t.rejects(writeFile(filler, Buffer.alloc(MiB)), { code: 'ENOSPC' })
    // What was there before the disk was full can be written in place, so this may or may not succeed; it never lies.
    const [outcome] = await Promise.allSettled([guests.sick.write(Buffer.alloc(BLOCK, 2), 8 * MiB)])
    await write(guests.sick, 3, 0, MiB)
    const block = Buffer.alloc(BLOCK)
    await guests.sick.read(block, 8 * MiB)
    if (outcome.status === 'fulfilled') t.ok(block.equals(Buffer.alloc(BLOCK, 2)))
    await rm(filler)
    await guests.sick.write(Buffer.alloc(BLOCK, 4), 12 * MiB)
    await othersServe(t, pair)
    await protectionOf(primary.qmp, 'sick', 'protected')
    await endsEqual(t, pair)
  },
)

void t.test('an image of the secondary that fails for a while is tried again', async (t) => {
  const pair = await ward(t, {
    layers: { secondary: 'fault:write,flush?error=EIO&first=20&count=6' },
  })
  const { primary, secondary, guests } = pair
  await write(guests.sick, 1, 0, 8 * MiB)
  await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
  await reported(secondary.qmp, 'REPLICATION_ERROR', 'sick')
  await othersServe(t, pair)
  do await primary.qmp.execute('replication-checkpoint', { group: 'sick' })
  while ((await stateOf(secondary.qmp, 'sick')).ramdiskBytes > 0)
  await endsEqual(t, pair)
})

void t.test('a dead image of the secondary costs protection, not the guest', async (t) => {
  const pair = await ward(t, {
    layers: { secondary: 'fault:write?error=EIO&first=30' },
    settings: ['memory=8M', 'journal=128M'],
  })
  const { primary, secondary, guests } = pair
  let confirmed = 0
  for (let round = 1; round <= 6; round += 1) {
    await write(guests.sick, round, 0, 2 * MiB)
    const taken = primary.qmp.execute('replication-checkpoint', { group: 'sick' })
    const [outcome] = await Promise.allSettled([taken])
    if (outcome.status === 'fulfilled') confirmed = round
  }
  // What the memory does not hold is spilled to the journal, until that is full as well.
  const lost = untilState(primary.qmp, (s) => s.protection !== 'protected')
  let protects = true
  void lost.finally(() => (protects = false))
  for (let round = 7; protects; round += 1) await write(guests.sick, round, 0, SIZE)
  const { protection, reason } = await lost
  t.equal(protection, 'unprotected')
  t.match(reason, /image/)
  t.match((await stateOf(secondary.qmp, 'sick')).error, /EIO/)
  await reported(secondary.qmp, 'REPLICATION_ERROR', 'sick')
  await lossReported(primary.qmp)
  await alarmStays(t, primary.qmp, /protection was lost/)
  await alarmStays(t, secondary.qmp, /cannot take a committed checkpoint.*EIO/)
  await othersServe(t, pair)
  for (const group of GROUPS) await guests[group].disconnect()
  for (const { server } of [primary, secondary]) t.equal((await server.stop()).code, 0)

  const mended = await secondary.again({})
  await mended.qmp.execute('replication-promote', { group: 'sick' })
  const heir = await attach(mended, 'sick')
  const found = Buffer.alloc(2 * MiB)
  await heir.read(found, 0)
  t.ok(confirmed > 0 && found.equals(Buffer.alloc(2 * MiB, confirmed)), 'the journal has kept it')
  await heir.disconnect()
  t.equal((await mended.server.stop()).code, 0)
})

void t.test(
  'an image of the primary that fails: the guest hears of it, and it heals',
  async (t) => {
    const pair = await ward(t, { layers: { primary: 'fault:write?error=EIO&first=40&count=3' } })
    const { primary, guests } = pair
    let failed = 0
    for (let at = 0; at < SIZE; at += 16 * BLOCK) {
      const [outcome] = await Promise.allSettled([
        guests.sick.write(Buffer.alloc(16 * BLOCK, 1), at),
      ])
      if (outcome.status === 'rejected') failed += 1
    }
    t.ok(failed > 0 && failed <= 3, `${failed} writes failed, and were said to`)
    await reported(primary.qmp, 'REPLICATION_ERROR', 'sick')
    await protectionOf(primary.qmp, 'sick', 'protected')
    await othersServe(t, pair)
    await endsEqual(t, pair)
  },
)

void t.test('a peer that hangs stalls no other group, and its own for the timeout', async (t) => {
  const pair = await ward(t, {})
  const { primary, secondary, guests } = pair
  await write(guests.sick, 1, 0, MiB)
  secondary.server.child.signal('SIGSTOP')
  // More than every buffer on the way holds.
  await write(guests.sick, 2, 0, SIZE)
  await untilState(primary.qmp, ({ protection }) => protection !== 'protected')
  t.match((await stateOf(primary.qmp, 'sick')).reason, /silent/)
  await lossReported(primary.qmp)
  // Its secondary hangs with the other one: it has to be served none the less.
  await write(guests.well, 1, 0, SIZE)
  secondary.server.child.signal('SIGCONT')
  await protectionOf(primary.qmp, 'sick', 'protected')
  await protectionOf(primary.qmp, 'well', 'protected')
  await alarmStays(t, primary.qmp, /protection was lost: the peer was silent/)
  await othersServe(t, pair)
  await endsEqual(t, pair)
})
