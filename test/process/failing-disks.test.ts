/**
 * Disks that are full or dead under a real pair: each ends in the policy that docs/replication.md names, an event and a
 * state; no process ends, nothing acknowledged is lost, and other groups of the same servers do not notice.
 */

import { existsSync } from 'node:fs'
import { readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import t, { type Test } from 'tap'
import { NbdClient } from '../../nbd/client.ts'
import { serveColotap, type ColotapServer } from '../support/colotap.ts'
import { createEmptyImage } from '../support/images.ts'
import type { QmpClient } from '../support/qmp.ts'
import { protectionOf, stateOf, until, type GroupState } from '../support/replica-pair.ts'
import { freePorts, tempDirectory } from '../support/scope.ts'

const MiB = 1 << 20
const BLOCK = 4096
const SIZE = 16 * MiB
const GROUPS = ['sick', 'well'] as const

type Side = 'primary' | 'secondary'

interface Host {
  readonly server: ColotapServer
  readonly qmp: QmpClient
  /** Its state folder. */
  readonly state: string
  image(group: string): string
  /** Starts it once more, after its end. */
  again(illness: Illness): Promise<Host>
}

interface Ward {
  readonly primary: Host
  readonly secondary: Host
  readonly guests: Readonly<Record<(typeof GROUPS)[number], NbdClient>>
}

interface Illness {
  /** Settings of the group `sick`, on both sides. */
  readonly settings?: readonly string[]
  /** A layer over the image of `sick`, by side. */
  readonly layers?: Partial<Record<Side, string>>
  /** The side that keeps its state in a file system of so many MiB. */
  readonly smallState?: { readonly side: Side; readonly mebibytes: number }
}

/** A pair of servers with two groups: one that falls ill, and one that must not notice. */
async function ward(t: Test, illness: Illness): Promise<Ward> {
  const [port = 0] = await freePorts(1)
  const secondary = await admit(t, 'secondary', port, illness, await tempDirectory(t))
  const primary = await admit(t, 'primary', port, illness, await tempDirectory(t))
  for (const group of GROUPS) await protectionOf(primary.qmp, group, 'protected')
  const guests = { sick: await attach(primary, 'sick'), well: await attach(primary, 'well') }
  return { primary, secondary, guests }
}

/** Starts a server on the images in its folder, which are made if they are not there. */
async function admit(
  t: Test,
  side: Side,
  port: number,
  illness: Illness,
  directory: string,
): Promise<Host> {
  const exports: Record<string, string> = {}
  const image = (group: string): string => path.join(directory, `${group}.img`)
  for (const group of GROUPS) {
    if (!existsSync(image(group))) await createEmptyImage(image(group), SIZE)
    const settings = group === 'sick' ? (illness.settings ?? []) : []
    const own = [`role=${side}`, `group=${group}`, 'heartbeat=50', 'timeout=1000', ...settings]
    const layer = group === 'sick' ? illness.layers?.[side] : undefined
    const below = [...(layer === undefined ? [] : [layer]), `aio:${image(group)}`]
    exports[group] = [`remus:127.0.0.1:${port}?${own.join('&')}`, ...below].join('|')
  }
  const { smallState } = illness
  const state = path.join(directory, 'state')
  const within = smallState?.side === side ? smallFileSystem(state, smallState.mebibytes) : []
  const server = await serveColotap(t, { exports, directory, within })
  // Seen from outside of its namespace.
  const root = within.length > 0 ? `/proc/${server.child.pid}/root` : ''
  return {
    ...{ server, image },
    qmp: await server.qmp(),
    state: root + state,
    again: (then) => admit(t, side, port, then, directory),
  }
}

/** Runs what follows with a file system of its own, in memory, at `place`. */
function smallFileSystem(place: string, mebibytes: number): readonly string[] {
  const user = process.getuid?.() === 0 ? [] : ['--map-root-user']
  const mount = `mkdir -p "$0" && mount -t tmpfs -o size=${mebibytes}M,mode=0700 tmpfs "$0" && exec "$@"`
  return ['unshare', '--mount', ...user, 'sh', '-c', mount, place]
}

function attach({ server }: Host, exportName: string): Promise<NbdClient> {
  return NbdClient.connect({ address: { kind: 'unix', path: server.socket }, exportName })
}

async function write(guest: NbdClient, value: number, from: number, length: number): Promise<void> {
  for (let at = from; at < from + length; at += 16 * BLOCK)
    await guest.write(Buffer.alloc(16 * BLOCK, value), at)
}

/** The group that is well takes a write and a checkpoint. */
async function othersServe(t: Test, { primary, guests }: Ward): Promise<void> {
  await guests.well.write(Buffer.alloc(BLOCK, 7), 0)
  await primary.qmp.execute('replication-checkpoint', { group: 'well' })
  t.equal((await stateOf(primary.qmp, 'well')).protection, 'protected', 'the other group is well')
}

async function reported(qmp: QmpClient, event: string, group: string): Promise<void> {
  await until(qmp, () =>
    Promise.resolve(
      qmp.events.some(
        (seen) => seen['event'] === event && (seen['data'] as { group: string }).group === group,
      ),
    ),
  )
}

async function untilState(
  qmp: QmpClient,
  holds: (state: GroupState) => boolean,
): Promise<GroupState> {
  let state = await stateOf(qmp, 'sick')
  await until(qmp, async () => holds((state = await stateOf(qmp, 'sick'))))
  return state
}

/** Ends both servers; the images have to be equal then, and hold `expected`. */
async function endsEqual(t: Test, { primary, secondary, guests }: Ward): Promise<void> {
  for (const group of GROUPS) {
    await primary.qmp.execute('replication-checkpoint', { group })
    await guests[group].disconnect()
  }
  for (const { server } of [primary, secondary]) t.equal((await server.stop()).code, 0)
  for (const group of GROUPS) {
    const [one, other] = await Promise.all([
      readFile(primary.image(group)),
      readFile(secondary.image(group)),
    ])
    t.ok(one.equals(other), `after a clean end both images of ${group} are equal`)
  }
}

void t.test('a full disk under the journal: no checkpoint, an event, and it heals', async (t) => {
  const pair = await ward(t, { smallState: { side: 'secondary', mebibytes: 24 } })
  const { primary, secondary, guests } = pair
  const filler = path.join(secondary.state, 'filler')
  await t.rejects(writeFile(filler, Buffer.alloc(24 * MiB)), { code: 'ENOSPC' })
  await write(guests.sick, 1, 0, 8 * MiB)
  await reported(secondary.qmp, 'REPLICATION_ERROR', 'sick')
  await untilState(primary.qmp, ({ protection }) => protection !== 'protected')
  await t.rejects(primary.qmp.execute('replication-checkpoint', { group: 'sick' }))
  t.match((await stateOf(secondary.qmp, 'sick')).error, /ENOSPC|no space/i)
  await write(guests.sick, 2, 8 * MiB, MiB)
  await rm(filler)
  await protectionOf(primary.qmp, 'sick', 'protected')
  await othersServe(t, pair)
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
  await write(guests.sick, 9, 0, SIZE)
  const { protection, reason } = await untilState(primary.qmp, (s) => s.protection !== 'protected')
  t.equal(protection, 'unprotected')
  t.match(reason, /image/)
  t.match((await stateOf(secondary.qmp, 'sick')).error, /EIO/)
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
  secondary.server.child.signal('SIGCONT')
  await protectionOf(primary.qmp, 'sick', 'protected')
  await protectionOf(primary.qmp, 'well', 'protected')
  await othersServe(t, pair)
  await endsEqual(t, pair)
})
