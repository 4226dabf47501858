/** A pair of groups over real links on loopback, whose disks can come, grow and go while both run. */

import type { Test } from 'tap'

import type { BlockDevice } from '../../core/block-device.ts'
import { SILENT } from '../../core/logger.ts'
import { KiB, MiB } from '../../core/units.ts'
import { RamDevice } from '../../drivers/ram.ts'
import { dialTo } from '../../replication/dial.ts'
import type { GroupEnvironment } from '../../replication/environment.ts'
import type { GroupEvent, GroupStatus } from '../../replication/group.ts'
import { ReplicationListener } from '../../replication/listener.ts'
import { NODE_TIMERS } from '../../replication/node-timers.ts'
import { memoryRegions } from '../../replication/regions/region-store.ts'
import { ReplicaGroup } from '../../replication/replica-group.ts'
import { MemorySegments } from './journal/memory-segments.ts'
import { freePorts } from '../support/scope.ts'

export const SIZE = 1 * MiB
export const BLOCK = 4 * KiB

/** Closing keeps what a ram disk holds, so that a test can look at it and open it again. */
export class Image extends RamDevice {
  override close(): Promise<void> {
    return Promise.resolve()
  }
}

export class Side {
  readonly group: ReplicaGroup
  readonly images = new Map<string, Image>()
  readonly disks = new Map<string, BlockDevice>()
  readonly events: GroupEvent[] = []
  #watchers: (() => void)[] = []

  constructor(
    role: 'primary' | 'secondary',
    port: number,
    store: MemorySegments,
    more: object = {},
    environment: Partial<GroupEnvironment> = {},
  ) {
    const dial = dialTo({ host: '127.0.0.1', port, security: undefined, logger: SILENT })
    let ids = 0
    const life = Math.random()
    this.group = new ReplicaGroup(
      {
        ...{ group: 'vm', mode: 'colo', role, peer: 'there', listens: true },
        ...{ memory: 64 * MiB, durability: 'journal', journal: 1 << 30, identical: false },
        ...{ heartbeatMs: 100, timeoutMs: 20_000, intervalMs: 0, onLinkLoss: 'continue' },
        ...{ wire: 'colotap', fence: null, partBytes: 64 * MiB, resyncRate: 0 },
        ...{ compareBytes: 64 * KiB, comparesFirst: false, ack: 'sent' },
        ...more,
      },
      {
        logger: SILENT,
        newId: () => `${role} ${life} ${(ids += 1)}`,
        timers: NODE_TIMERS,
        nowMs: () => performance.now(),
        onEvent: (event) => {
          this.events.push(event)
          for (const look of [...this.#watchers]) look()
        },
        hasSegments: async () => (await store.list()).length > 0,
        fence: () => Promise.reject(new Error('nobody is to be asked')),
        openSegments: () => Promise.resolve(store),
        openRegions: (_group, _disk, size) => {
          const regions = memoryRegions(size, 64 * KiB)
          regions.found.fill(0xff)
          return Promise.resolve(regions)
        },
        removeRegions: () => Promise.resolve(),
        ...environment,
      },
      role === 'primary' ? dial : undefined,
    )
  }

  attach(name: string, image = new Image(SIZE)): BlockDevice {
    this.images.set(name, image)
    const disk = this.group.attach(name, image)
    this.disks.set(name, disk)
    return disk
  }

  /** As a toolstack adds a disk to a group that runs. */
  async add(name: string, image = new Image(SIZE)): Promise<BlockDevice> {
    const disk = this.attach(name, image)
    await this.group.admit()
    return disk
  }

  async remove(name: string): Promise<void> {
    await this.group.dismiss(name)
    await this.disk(name).close()
    this.disks.delete(name)
  }

  disk(name: string): BlockDevice {
    const disk = this.disks.get(name)
    if (disk === undefined) throw new Error(`no disk ${name}`)
    return disk
  }

  async write(name: string, at: number, value: number, length = BLOCK): Promise<void> {
    await this.disk(name).write(Buffer.alloc(length, value), at, 0)
  }

  async read(name: string, at: number): Promise<number> {
    const block = Buffer.alloc(BLOCK)
    await this.disk(name).read(block, at)
    if (block.some((byte) => byte !== block[0])) throw new Error('a mixture')
    return block[0] ?? -1
  }

  standing(name: string): string | undefined {
    return this.group.status().disks.find((disk) => disk.name === name)?.standing
  }

  /** Resolves when the status is so; looked at after each event and, where none tells, again soon. */
  async until(so: (status: GroupStatus) => boolean): Promise<void> {
    while (!so(this.group.status()))
      await new Promise<void>((resolve) => {
        const cancel = NODE_TIMERS.after(5, done)
        this.#watchers.push(done)
        const watchers = this.#watchers
        function done(): void {
          cancel()
          watchers.splice(watchers.indexOf(done), 1)
          resolve()
        }
      })
  }

  untilProtected(): Promise<void> {
    return this.until(({ protection }) => protection === 'protected')
  }
}

export interface Pair {
  readonly primary: Side
  readonly secondary: Side
  readonly stores: { readonly primary: MemorySegments; readonly secondary: MemorySegments }
  readonly port: number
}

/** @param environment what the primary is given of the world in place of the usual */
export async function start(
  t: Test,
  more: object = {},
  names: readonly string[] = ['a'],
  environment: Partial<GroupEnvironment> = {},
): Promise<Pair> {
  const [port = 0] = await freePorts(1)
  const stores = { primary: new MemorySegments(), secondary: new MemorySegments() }
  const [primary, secondary] = [
    new Side('primary', port, stores.primary, more, environment),
    new Side('secondary', port, stores.secondary, more),
  ]
  for (const side of [primary, secondary]) for (const name of names) side.attach(name)
  await begin(t, secondary, port)
  t.teardown(() => primary.group.close())
  await primary.group.start()
  await primary.untilProtected()
  return { primary, secondary, stores, port }
}

async function begin(t: Test, secondary: Side, port: number): Promise<ReplicationListener> {
  const listener = new ReplicationListener('127.0.0.1', port, SILENT)
  await listener.listen()
  t.teardown(async () => {
    await listener.close()
    await secondary.group.close()
  })
  await secondary.group.start()
  listener.add('vm', secondary.group)
  listener.start()
  return listener
}
