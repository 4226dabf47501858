/**
 * The replication groups of a server: made from the `colo` and `remus` stages of its pipelines, started together.
 *
 * Invariant: the disks of a group agree on everything but their names and images, or the second one is refused.
 */

import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'

import { formatHostPort, parseHostPort } from '../core/address.ts'
import type { BlockDevice } from '../core/block-device.ts'
import { Fault } from '../core/fault.ts'
import type { Logger } from '../core/logger.ts'
import { GiB, MiB, SECTOR, TiB } from '../core/units.ts'
import { MOST_COMPARED } from '../replication/comparison/comparison.ts'
import { Blktap2Listener } from '../replication/blktap2/listener.ts'
import { blktap2Dial } from '../replication/blktap2/primary-link.ts'
import { dialTo } from '../replication/dial.ts'
import type { Dial, GroupEnvironment } from '../replication/environment.ts'
import {
  ACKS,
  type GroupEventSink,
  type GroupMode,
  type ReplicationGroup,
} from '../replication/group.ts'
import { hasFileSegments, openFileSegments } from '../replication/journal/file-segments.ts'
import { ReplicationListener } from '../replication/listener.ts'
import { NODE_TIMERS } from '../replication/node-timers.ts'
import { runFenceHook } from '../replication/fence-hook.ts'
import { openFileRegions, removeFileRegions } from '../replication/regions/file-regions.ts'
import { memoryRegions } from '../replication/regions/region-store.ts'
import { ReplicaDisk } from '../replication/replica-disk.ts'
import { ReplicaGroup } from '../replication/replica-group.ts'
import type { GroupSettings } from '../replication/settings.ts'
import { choiceSetting, integerSetting, sizeSetting, type Stage } from './driver.ts'
import { Guard } from './guard.ts'
import {
  loadSecurity,
  refuseExposure,
  securityOf,
  type SecuritySettings,
} from './link-credentials.ts'

export interface RegistryOptions {
  readonly logger: Logger
  readonly onEvent: GroupEventSink
  /** Allow links beyond loopback that are not encrypted. */
  readonly insecure: boolean
  /** Each group that keeps a journal has a folder of its name below this one. */
  readonly stateDir: string
}

type Role = 'primary' | 'secondary' | 'auto'

/** Bytes of disk behind one bit of the map of changed regions: what a crash of a primary costs to copy for each of them. */
const REGION = 4 * MiB

/** Nothing on the blktap2 wire can be copied or remembered: each process begins anew, with equal images. */
const BLKTAP2_PRIMARY = { durability: 'memory', identical: true } as const

/** What makes no sense with that wire, and why. */
const BLKTAP2_REFUSES: readonly (readonly [key: string, reason: string])[] = [
  ['listen', 'the roles cannot be exchanged over it'],
  ['peer', 'the roles cannot be exchanged over it'],
  ['ack', 'it has no acknowledgements'],
  ['resync', 'nothing on it can be compared'],
  ['tls-creds', 'it is never encrypted'],
  ['tls-psk', 'it is never encrypted'],
  ['tls-user', 'it is never encrypted'],
  ['tls-name', 'it is never encrypted'],
]

interface Address {
  readonly host: string
  readonly port: number
}

/** What the disks of a group have in common. */
interface Terms {
  readonly settings: Omit<GroupSettings, 'role' | 'peer' | 'listens'>
  readonly role: Role
  /** The pipeline's target, and what listen= and peer= say. */
  readonly target: Address
  readonly listen: Address | undefined
  readonly peer: Address | undefined
  readonly security: SecuritySettings
}

interface Member {
  /** The address as the pipeline of the first disk has it. */
  readonly target: string
  readonly terms: Terms
  readonly group: ReplicaGroup
  /** Undefined where nobody can connect to this side. */
  readonly listener: Port['listener'] | undefined
  started: boolean
}

/** What the groups behind a port have in common. */
interface Port {
  readonly listener: ReplicationListener | Blktap2Listener
  readonly security: SecuritySettings
}

export class ReplicationRegistry {
  readonly #options: RegistryOptions
  readonly #environment: GroupEnvironment
  readonly #members = new Map<string, Member>()
  readonly #ports = new Map<string, Port>()

  constructor(options: RegistryOptions) {
    this.#options = options
    const { logger, onEvent, stateDir } = options
    const folderOf = (group: string): string => join(stateDir, `group-${encodeURIComponent(group)}`)
    this.#environment = {
      logger,
      onEvent,
      newId: randomUUID,
      timers: NODE_TIMERS,
      openSegments: (group) => openFileSegments(folderOf(group)),
      openRegions: async (group, disk, size, fresh) => {
        if (!(await hasFileSegments(folderOf(group)))) return memoryRegions(size, REGION)
        return openFileRegions(folderOf(group), disk, size, REGION, fresh)
      },
      removeRegions: async (group, disk) => {
        if (await hasFileSegments(folderOf(group))) await removeFileRegions(folderOf(group), disk)
      },
      fence: async (program, request) => {
        const outcome = await runFenceHook(program, request)
        const what = outcome.fenced ? 'the other side is fenced' : 'the other side is not fenced'
        logger.warn({ ...request, program, said: outcome.detail }, what)
        return outcome
      },
      hasSegments: (group) => hasFileSegments(folderOf(group)),
      nowMs: () => performance.now(),
    }
  }

  get groups(): readonly ReplicationGroup[] {
    return [...this.#members.values()].map(({ group }) => group)
  }

  /** What blktap2 names its checkpoint sockets after: the mode and the target of each group. */
  get targets(): readonly {
    readonly group: string
    readonly mode: GroupMode
    readonly target: string
  }[] {
    return [...this.#members].map(([group, { terms, target }]) => ({
      group,
      mode: terms.settings.mode,
      target,
    }))
  }

  /** Joins the disk `below` to the group that `stage` names. @throws Fault when it does not fit */
  async attach(
    stage: Stage,
    mode: GroupMode,
    exportName: string,
    below: BlockDevice,
  ): Promise<BlockDevice> {
    checkDisk(below, exportName)
    if (below instanceof ReplicaDisk)
      throw new Fault('INVALID', 'a disk is replicated by one layer', {
        where: exportName,
        remedy: 'leave one of the layers out',
      })
    const terms = termsOf(stage, mode)
    const { group } = terms.settings
    let member = this.#members.get(group)
    if (member === undefined) {
      member = { target: stage.target, terms, started: false, ...(await this.#newGroup(terms)) }
      this.#members.set(group, member)
    } else if (!isDeepStrictEqual(terms, member.terms)) {
      const remedy = 'give all disks of a group the same address, driver and settings'
      throw new Fault(
        'INVALID',
        `disk "${exportName}" disagrees with the other disks of group "${group}"`,
        { remedy },
      )
    } else if (terms.settings.wire === 'blktap2') throw oneDisk(exportName, group)
    // Replication works in sectors; an image with larger blocks (O_DIRECT) is changed by reading, patching and writing.
    const inSectors = below.geometry.block.min > SECTOR ? new Guard(below, false) : below
    return member.group.attach(exportName, inSectors)
  }

  /**
   * Begins to connect and to listen with the groups that have not begun yet, once every disk is attached; to groups that run,
   * adds what was attached since.
   */
  async start(): Promise<void> {
    const begun = [...this.#members].filter(([, { started }]) => !started)
    for (const [, { group, started }] of this.#members)
      await (started ? group.admit() : group.start())
    for (const [name, member] of begun) {
      member.started = true
      member.listener?.add(name, member.group)
      member.listener?.start()
    }
  }

  /** @throws Fault when a disk cannot leave its group now, which goes on with others */
  async refuseRemoval(exportName: string): Promise<void> {
    for (const group of this.#groupsLeft(exportName)) await group.refuseDismissal(exportName)
  }

  /** A disk is about to be closed. Its group runs on where it has others. @throws Fault, with the disk as it was */
  async dismiss(exportName: string): Promise<void> {
    for (const group of this.#groupsLeft(exportName)) await group.dismiss(exportName)
  }

  /** The groups that have this disk among others. */
  #groupsLeft(exportName: string): ReplicaGroup[] {
    return [...this.#members.values()]
      .map(({ group }) => group)
      .filter((group) => group.has(exportName) && group.size > 1)
  }

  /** Ends what belongs to groups that are closed. */
  async forget(): Promise<void> {
    for (const [name, { group, listener }] of this.#members) {
      if (!group.closed) continue
      this.#members.delete(name)
      listener?.remove(name)
    }
    for (const [address, { listener }] of this.#ports) {
      const inUse = [...this.#members.values()].some((member) => member.listener === listener)
      if (inUse) continue
      this.#ports.delete(address)
      await listener.close()
    }
  }

  /** The server is being shut down: what waits is refused, and so are commands. */
  stop(): void {
    for (const { group } of this.#members.values()) group.stop()
  }

  async close(): Promise<void> {
    for (const { listener } of this.#ports.values()) await listener.close()
  }

  async #newGroup(terms: Terms): Promise<Pick<Member, 'group' | 'listener'>> {
    const { settings, target } = terms
    const listen = terms.role === 'primary' ? terms.listen : (terms.listen ?? target)
    if (listen?.port === 0)
      throw new Fault('INVALID', 'a secondary on port 0 listens where no primary finds it', {
        where: `group ${settings.group}`,
        remedy: 'choose a port',
      })
    const listener = listen === undefined ? undefined : await this.#listener(listen, terms)
    const role =
      terms.role === 'auto' ? (listener === undefined ? 'primary' : 'secondary') : terms.role
    const peer = role === 'primary' ? (terms.peer ?? target) : terms.peer
    const first = settings.wire === 'blktap2' && role === 'primary'
    if (first && (await this.#environment.hasSegments(settings.group)))
      throw remembersMore(settings.group)
    const group = new ReplicaGroup(
      {
        ...settings,
        ...(first ? BLKTAP2_PRIMARY : {}),
        role,
        peer: peer === undefined ? null : formatHostPort(peer),
        listens: listener !== undefined,
      },
      this.#environment,
      peer === undefined ? undefined : await this.#dial(peer, terms),
    )
    return { group, listener }
  }

  async #dial(peer: Address, { security, settings: { wire } }: Terms): Promise<Dial> {
    const { insecure, logger } = this.#options
    if (!insecure) refuseExposure(security, peer, 'client', wire === 'colotap')
    if (wire === 'blktap2')
      return blktap2Dial(peer.host, peer.port, () => this.#environment.nowMs())
    return dialTo({ ...peer, security: await loadSecurity(security, 'client'), logger })
  }

  /** @returns undefined when this side is a primary by blktap2's rule: the address is not to be had here */
  async #listener(
    { host, port }: Address,
    { role, security, settings: { group, wire } }: Terms,
  ): Promise<Port['listener'] | undefined> {
    const address = formatHostPort({ host, port })
    const existing = this.#ports.get(address)
    if (existing !== undefined) {
      if (wire === 'blktap2' || existing.listener instanceof Blktap2Listener) throw onePort(address)
      if (isDeepStrictEqual(security, existing.security)) return existing.listener
      throw new Fault(
        'INVALID',
        `group "${group}" disagrees with the other groups on its port about who is let in`,
        { where: address, remedy: 'give them the same tls- settings, or another port' },
      )
    }
    const Listener = wire === 'blktap2' ? Blktap2Listener : ReplicationListener
    const listener = new Listener(host, port, this.#options.logger)
    try {
      await listener.listen()
    } catch (error) {
      if (role === 'auto') return undefined
      throw error
    }
    try {
      if (!this.#options.insecure)
        refuseExposure(security, { host, port }, 'server', wire === 'colotap')
      const credentials = await loadSecurity(security, 'server')
      if (credentials !== undefined && listener instanceof ReplicationListener)
        listener.secure(credentials)
    } catch (error) {
      await listener.close()
      throw error
    }
    this.#ports.set(address, { listener, security })
    return listener
  }
}

function checkDisk(below: BlockDevice, exportName: string): void {
  const { size, readOnly } = below.geometry
  if (size % SECTOR !== 0) {
    const remedy = `make it a multiple of ${SECTOR}, for example: truncate -s ${Math.ceil(size / SECTOR) * SECTOR} IMAGE`
    throw new Fault(
      'INVALID',
      `a replicated disk consists of whole sectors; this one has ${size} bytes`,
      { where: exportName, remedy },
    )
  }
  if (readOnly)
    throw new Fault('INVALID', 'a replicated disk cannot be read-only', {
      where: exportName,
      remedy: 'leave out --read-only',
    })
}

function oneDisk(exportName: string, group: string): Fault {
  return new Fault('INVALID', `group "${group}" has a disk already, and wire=blktap2 carries one`, {
    where: exportName,
    remedy: 'give each disk a group and an address of its own, or use wire=colotap on both sides',
  })
}

function onePort(address: string): Fault {
  return new Fault('INVALID', 'a port with wire=blktap2 belongs to one group', {
    where: address,
    remedy: 'give each group an address of its own',
  })
}

function remembersMore(group: string): Fault {
  return new Fault(
    'INVALID',
    'this group has a journal, and a primary with wire=blktap2 begins without one',
    {
      where: `group ${group}`,
      remedy: "move the group's folder below the state directory away, and make the images equal",
    },
  )
}

function checkBlktap2({ driver, target, settings }: Stage): void {
  const where = `${driver}:${target}`
  for (const [key, reason] of BLKTAP2_REFUSES)
    if (settings.has(key))
      throw new Fault('INVALID', `${key}= goes not with wire=blktap2: ${reason}`, {
        where,
        remedy: `leave ${key}= out, or use wire=colotap on both sides`,
      })
  if (settings.get('initial') === 'copy')
    throw new Fault('INVALID', 'initial=copy goes not with wire=blktap2, which cannot copy', {
      where,
      remedy: 'make the images equal before the start, and leave initial= out',
    })
}

function termsOf(stage: Stage, mode: GroupMode): Terms {
  if (stage.settings.get('wire') === 'blktap2') checkBlktap2(stage)
  const addressOf = (key: string): Address | undefined => {
    const text = stage.settings.get(key)
    return text === undefined ? undefined : parseHostPort(text)
  }
  return {
    settings: settingsOf(stage, mode),
    role: choiceSetting(stage, 'role', ['auto', 'primary', 'secondary'], 'auto'),
    target: parseHostPort(stage.target),
    listen: addressOf('listen'),
    peer: addressOf('peer'),
    security: securityOf(stage),
  }
}

function settingsOf(stage: Stage, mode: GroupMode): Terms['settings'] {
  const heartbeatMs = integerSetting(stage, 'heartbeat', { least: 10, most: 60_000 }, 500)
  const wire = choiceSetting(stage, 'wire', ['colotap', 'blktap2'], 'colotap')
  // A peer that is given up over the blktap2 wire cannot come back: more patience is the lesser evil.
  const patienceMs = wire === 'blktap2' ? 30_000 : 5_000
  const timeoutMs = integerSetting(stage, 'timeout', { least: 100, most: 600_000 }, patienceMs)
  if (timeoutMs < 2 * heartbeatMs) {
    throw new Fault(
      'INVALID',
      `timeout=${timeoutMs} is less than two heartbeats of ${heartbeatMs} ms`,
      { where: stage.target, remedy: 'raise timeout= or lower heartbeat=' },
    )
  }
  const memory = sizeSetting(stage, 'memory', { least: 8 * MiB, most: 1 * TiB }, 1 * GiB)
  const durability = choiceSetting(stage, 'durability', ['journal', 'memory'], 'journal')
  const ack = choiceSetting(stage, 'ack', ACKS, 'sent')
  if (ack === 'durable' && durability === 'memory')
    throw new Fault(
      'INVALID',
      'ack=durable goes not with durability=memory, which stores nothing',
      {
        where: stage.target,
        remedy: 'leave durability=memory out on both sides, or use ack=received',
      },
    )
  const journal = sizeSetting(stage, 'journal', { least: 128 * MiB, most: 16 * TiB }, 8 * GiB)
  const group = stage.settings.get('group') ?? 'default'
  if (group === '' || group.length > 255)
    throw new Fault('INVALID', 'a group name has 1 to 255 characters', { where: stage.target })
  return {
    ...{ group, mode, wire, ack, heartbeatMs, timeoutMs, memory, durability, journal },
    identical: choiceSetting(stage, 'initial', ['copy', 'identical'], 'copy') === 'identical',
    onLinkLoss: choiceSetting(stage, 'on-link-loss', ['continue', 'freeze'], 'continue'),
    intervalMs: integerSetting(stage, 'interval', { least: 0, most: 3_600_000 }, 0),
    fence: stage.settings.get('fence') ?? null,
    partBytes: 64 * MiB,
    compareBytes: MOST_COMPARED,
    comparesFirst: choiceSetting(stage, 'resync', ['copy', 'checksums'], 'copy') === 'checksums',
    resyncRate: sizeSetting(stage, 'resync-rate', { least: 0, most: 1 * TiB }, 0),
  }
}
