/** Two colotap servers that replicate one group of disks, as processes of their own. */

import { mkdir } from 'node:fs/promises'
import path from 'node:path'
import { serveColotap, type ColotapServer, type ServeOptions } from './colotap.ts'
import type { QmpClient } from './qmp.ts'
import { createReplicaImage, type PairFormats, type ReplicaFormat } from './replica-images.ts'
import { freePorts, tempDirectory, type Scope } from './scope.ts'

export interface ReplicaHost {
  readonly server: ColotapServer
  readonly qmp: QmpClient
  /** Paths of the images, by disk. */
  readonly images: Readonly<Record<string, string>>
  readonly format: ReplicaFormat
  /** What a server needs to be started again in its place. */
  readonly place: Pick<ServeOptions, 'exports' | 'directory' | 'within'>
}

/** Where a side runs. */
export interface HostPlace {
  /** Its address on the network of both sides. */
  readonly address: string
  /** See ServeOptions. */
  readonly within: readonly string[]
}

const LOOPBACK: HostPlace = { address: '127.0.0.1', within: [] }

export interface ReplicaPair {
  readonly port: number
  readonly primary: ReplicaHost
  readonly secondary: ReplicaHost
}

export interface PairOptions {
  readonly mode: 'colo' | 'remus'
  /** Sizes in bytes, by disk. */
  readonly disks: Readonly<Record<string, number>>
  /** Further settings of both sides, such as `timeout=1000`. */
  readonly settings?: readonly string[]
  /** Both on loopback unless given. */
  readonly places?: Readonly<Record<'primary' | 'secondary', HostPlace>>
  /** Raw files unless given. */
  readonly formats?: PairFormats
}

/** Starts a pair from equal, empty images and awaits its protection. */
export async function startPair(scope: Scope, options: PairOptions): Promise<ReplicaPair> {
  const [port, back] = await freePorts(2)
  if (port === undefined || back === undefined) throw new Error('no free port')
  const directory = await tempDirectory(scope)
  const secondary = await startHost(scope, options, directory, 'secondary', port, {}, back)
  const primary = await startHost(scope, options, directory, 'primary', port, {}, back)
  await protection(primary.qmp, 'protected')
  return { port, primary, secondary }
}

/** @param contents of the images, by disk; the others are empty */
export async function startHost(
  scope: Scope,
  {
    mode,
    disks,
    settings = [],
    formats,
    places = { primary: LOOPBACK, secondary: LOOPBACK },
  }: PairOptions,
  parent: string,
  role: 'primary' | 'secondary',
  port: number,
  contents: Readonly<Record<string, Buffer>> = {},
  /** Where the primary listens when the roles are exchanged. */
  back?: number,
): Promise<ReplicaHost> {
  const directory = path.join(parent, role)
  await mkdir(directory)
  const format = formats?.[role] ?? 'aio'
  const images: Record<string, string> = {}
  const exports: Record<string, string> = {}
  for (const [name, size] of Object.entries(disks)) {
    const image = path.join(directory, `${name}.img`)
    await createReplicaImage(scope, image, format, size, contents[name])
    images[name] = image
    const exchange = role === 'primary' ? 'listen' : 'peer'
    const [there, here] = [places.secondary.address, places.primary.address]
    const query = [
      `role=${role}`,
      'group=test',
      ...(back === undefined ? [] : [`${exchange}=${here}:${back}`]),
      ...settings,
    ].join('&')
    exports[name] = `${mode}:${there}:${port}?${query}|${format}:${image}`
  }
  const place = { exports, directory, within: places[role].within }
  const server = await serveColotap(scope, place)
  return { server, qmp: await server.qmp(), images, format, place }
}

/** Starts a host's server again, after its end, on what it has left. */
export async function restartHost(
  scope: Scope,
  { images, format, place }: ReplicaHost,
): Promise<ReplicaHost> {
  const server = await serveColotap(scope, place)
  return { server, qmp: await server.qmp(), images, format, place }
}

export interface GroupState {
  readonly group: string
  readonly role: string
  readonly protection: string
  readonly reason: string | null
  readonly checkpoint: number
  readonly durable: boolean
  readonly error: string | null
  readonly ramdiskBytes: number
  readonly alarms: readonly { readonly text: string }[]
}

/** The state of the only group. */
export async function groupState(qmp: QmpClient): Promise<GroupState> {
  const [group] = await groupStates(qmp)
  if (group === undefined) throw new Error('the server has no group')
  return group
}

export async function stateOf(qmp: QmpClient, name: string): Promise<GroupState> {
  const found = (await groupStates(qmp)).find(({ group }) => group === name)
  if (found === undefined) throw new Error(`the server has no group ${name}`)
  return found
}

async function groupStates(qmp: QmpClient): Promise<readonly GroupState[]> {
  const { groups } = (await qmp.execute('replication-status')) as { groups: GroupState[] }
  return groups
}

/** Resolves when the only group's protection is `wanted`, now or by an event. */
export async function protection(qmp: QmpClient, wanted: string): Promise<void> {
  await until(qmp, async () => (await groupState(qmp)).protection === wanted)
}

export async function protectionOf(qmp: QmpClient, group: string, wanted: string): Promise<void> {
  await until(qmp, async () => (await stateOf(qmp, group)).protection === wanted)
}

/** Resolves when this side knows that the link is gone. */
export async function linkLost(qmp: QmpClient): Promise<void> {
  await until(qmp, async () => (await groupState(qmp)).protection !== 'protected')
}

/** Asks again after each event, so nothing that happens between question and wait is missed. */
export async function until(qmp: QmpClient, holds: () => Promise<boolean>): Promise<void> {
  for (;;) {
    const seen = qmp.events.length
    if (await holds()) return
    await qmp.eventAfter(seen)
  }
}
