/** A pair of servers with two groups: one that falls ill, and one that must not notice. */

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import type { Test } from 'tap'
import { NbdClient } from '../../nbd/client.ts'
import { serveColotap, type ColotapServer } from './colotap.ts'
import { createEmptyImage } from './images.ts'
import type { QmpClient } from './qmp.ts'
import { protectionOf, stateOf, until, type GroupState } from './replica-pair.ts'
import { freePorts, tempDirectory } from './scope.ts'

const MiB = 1 << 20
export const BLOCK = 4096
export const SIZE = 16 * MiB
export const GROUPS = ['sick', 'well'] as const

type Side = 'primary' | 'secondary'

export interface Host {
  readonly server: ColotapServer
  readonly qmp: QmpClient
  /** Its state folder. */
  readonly state: string
  image(group: string): string
  /** Starts it once more, after its end. */
  again(illness: Illness): Promise<Host>
}

export interface Ward {
  readonly primary: Host
  readonly secondary: Host
  readonly guests: Readonly<Record<(typeof GROUPS)[number], NbdClient>>
}

export interface Illness {
  /** Bytes of the disk of `sick`. */
  readonly size?: number
  /** Settings of the group `sick`, on both sides. */
  readonly settings?: readonly string[]
  /** Settings of the group `well`. */
  readonly others?: readonly string[]
  /** A layer over the image of `sick`, by side. */
  readonly layers?: Partial<Record<Side, string>>
  /** The side that keeps its state in a file system of so many MiB. */
  readonly smallState?: { readonly side: Side; readonly mebibytes: number }
}

/** Starts one, and awaits its protection. */
export async function ward(t: Test, illness: Illness): Promise<Ward> {
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
    if (!existsSync(image(group)))
      await createEmptyImage(image(group), (group === 'sick' ? illness.size : undefined) ?? SIZE)
    const settings = (group === 'sick' ? illness.settings : illness.others) ?? []
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

export function attach({ server }: Host, exportName: string): Promise<NbdClient> {
  return NbdClient.connect({ address: { kind: 'unix', path: server.socket }, exportName })
}

export async function write(
  guest: NbdClient,
  value: number,
  from: number,
  length: number,
): Promise<void> {
  for (let at = from; at < from + length; at += 16 * BLOCK)
    await guest.write(Buffer.alloc(16 * BLOCK, value), at)
}

/** The group that is well takes a write and a checkpoint. */
export async function othersServe(t: Test, { primary, guests }: Ward): Promise<void> {
  await guests.well.write(Buffer.alloc(BLOCK, 7), 0)
  await primary.qmp.execute('replication-checkpoint', { group: 'well' })
  t.equal((await stateOf(primary.qmp, 'well')).protection, 'protected', 'the other group is well')
}

/** Who comes later still sees what happened, also where it has healed. */
export async function alarmStays(t: Test, qmp: QmpClient, what: RegExp): Promise<void> {
  const { alarms } = await stateOf(qmp, 'sick')
  t.ok(
    alarms.some(({ text }) => what.test(text)),
    `an alarm of ${what} stays: ${alarms.map(({ text }) => text).join(' | ')}`,
  )
}

export async function reported(qmp: QmpClient, event: string, group: string): Promise<void> {
  await until(qmp, () =>
    Promise.resolve(
      qmp.events.some(
        (seen) => seen['event'] === event && (seen['data'] as { group: string }).group === group,
      ),
    ),
  )
}

/** An event has told that `sick` is not protected any more. One that has only begun is `connecting`, and tells no such thing. */
export async function lossReported(qmp: QmpClient): Promise<void> {
  await until(qmp, () => {
    const told = qmp.events.flatMap(({ event, data }) => {
      const { group, protection } = data as { group: string; protection?: string }
      return event === 'REPLICATION_PROTECTION' && group === 'sick' ? [protection] : []
    })
    return Promise.resolve(told.includes('unprotected'))
  })
}

export async function untilState(
  qmp: QmpClient,
  holds: (state: GroupState) => boolean,
): Promise<GroupState> {
  let state = await stateOf(qmp, 'sick')
  await until(qmp, async () => holds((state = await stateOf(qmp, 'sick'))))
  return state
}

/** Ends both servers; the images have to be equal then, and hold `expected`. */
export async function endsEqual(t: Test, { primary, secondary, guests }: Ward): Promise<void> {
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
