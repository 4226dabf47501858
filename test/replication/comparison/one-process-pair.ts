/** Both sides of a group in one process, over a wire that a test can look at, cut and hold up. */

import { SILENT } from '../../../core/logger.ts'
import { KiB, MiB } from '../../../core/units.ts'
import type {
  Dial,
  GroupEnvironment,
  Link,
  LinkHandlers,
} from '../../../replication/environment.ts'
import type { GroupEvent, VerifyReport } from '../../../replication/group.ts'
import type { Frame } from '../../../replication/machine/frame.ts'
import { decodeHello } from '../../../replication/machine/handshake.ts'
import { NODE_TIMERS } from '../../../replication/node-timers.ts'
import { memoryRegions } from '../../../replication/regions/region-store.ts'
import { ReplicaGroup } from '../../../replication/replica-group.ts'
import type { GroupSettings } from '../../../replication/settings.ts'
import type { BlockDevice } from '../../../core/block-device.ts'
import { MemoryDevice } from '../../nbd/memory-device.ts'

export const SIZE = 4 * MiB

export interface Side {
  readonly group: ReplicaGroup
  readonly image: MemoryDevice
  readonly disk: BlockDevice
  readonly events: GroupEvent[]
  /** Resolves with the next event that is wanted; from now on. */
  readonly next: (wanted: (event: GroupEvent) => boolean) => Promise<GroupEvent>
}

export interface Pair {
  readonly primary: Side
  readonly secondary: Side
  /** Frames that the primary sent, payloads left out. */
  readonly sent: Frame[]
  /** Changes or drops what the secondary sends. */
  back: (frame: Frame) => Frame | undefined
  cut(): void
  close(): Promise<void>
}

export interface PairOptions {
  readonly primary?: Partial<GroupSettings>
  /** What the primary is given of the world in place of the usual. */
  readonly environment?: Partial<GroupEnvironment>
  readonly contents?: { readonly primary?: Buffer; readonly secondary?: Buffer }
}

/** Starts both sides, and awaits their protection. */
export async function startPair({
  primary: settings,
  environment,
  contents = {},
}: PairOptions = {}): Promise<Pair> {
  const sent: Frame[] = []
  let ends: readonly [Wire, Wire] | undefined
  const secondary = await startSide('secondary', { content: contents.secondary })
  const pair = { back: (frame: Frame): Frame | undefined => frame }
  const dial: Dial = (connected) => {
    connected((handlers) => {
      const near = new Wire(handlers)
      let owner: LinkHandlers | undefined
      const far = new Wire({
        frame: (frame) => {
          if (owner === undefined) owner = secondary.group.take(far, decodeHello(frame.payload))
          else owner.frame(frame)
        },
        closed: (reason) => owner?.closed(reason),
      })
      near.to = (frame) => {
        sent.push({ ...frame, payload: Buffer.alloc(frame.payload.length) })
        far.receive(frame)
      }
      far.to = (frame) => {
        const changed = pair.back(frame)
        if (changed !== undefined) near.receive(changed)
      }
      near.other = far
      far.other = near
      ends = [near, far]
      return near
    })
    return () => undefined
  }
  const primary = await startSide('primary', {
    ...{ settings, environment, content: contents.primary, dial },
  })
  if (primary.group.status().protection !== 'protected') await primary.next(isProtected)
  return {
    ...{ primary, secondary, sent },
    get back() {
      return pair.back
    },
    set back(change) {
      pair.back = change
    },
    cut: () => ends?.[0].close('cut'),
    close: async () => {
      await primary.disk.close()
      await secondary.disk.close()
    },
  }
}

export const isProtected = (event: GroupEvent): boolean =>
  event.event === 'REPLICATION_PROTECTION' && event.data.protection === 'protected'

/** Compares both sides to the end. */
export async function verified(
  { group, next }: Side,
  wish: 'compare' | 'repair' = 'compare',
): Promise<VerifyReport> {
  const ended = next(({ event }) => event === 'REPLICATION_VERIFY')
  group.verify(wish)
  const event = await ended
  if (event.event !== 'REPLICATION_VERIFY') throw new Error('not the event that was awaited')
  return event.data
}

class Wire implements Link {
  readonly peer = 'peer'
  closed = false
  to: (frame: Frame) => void = () => undefined
  other: Wire | undefined
  readonly #handlers: LinkHandlers

  constructor(handlers: LinkHandlers) {
    this.#handlers = handlers
  }

  send(frame: Frame): void {
    if (this.closed) return
    const copy = { ...frame, payload: Buffer.from(frame.payload) }
    setImmediate(() => this.to(copy))
  }

  sendData(frame: Frame, handed: () => void): void {
    this.send(frame)
    setImmediate(handed)
  }

  receive(frame: Frame): void {
    if (this.closed) return
    try {
      this.#handlers.frame(frame)
    } catch (error) {
      this.close(error instanceof Error ? error.message : String(error))
    }
  }

  pause(): void {}
  resume(): void {}

  close(reason: string): void {
    if (this.closed) return
    this.closed = true
    this.#handlers.closed(reason)
    const { other } = this
    setImmediate(() => other?.close(reason))
  }
}

export interface SideOptions {
  readonly settings?: Partial<GroupSettings> | undefined
  readonly environment?: Partial<GroupEnvironment> | undefined
  readonly content?: Buffer | undefined
  readonly dial?: Dial | undefined
}

export async function startSide(
  role: 'primary' | 'secondary',
  { settings, environment: given, content, dial }: SideOptions,
): Promise<Side> {
  const events: GroupEvent[] = []
  const waiting = new Set<(event: GroupEvent) => void>()
  let ids = 0
  const environment: GroupEnvironment = {
    logger: SILENT,
    newId: () => `${role}${(ids += 1)}`,
    timers: NODE_TIMERS,
    nowMs: () => performance.now(),
    onEvent: (event) => {
      events.push(event)
      for (const look of waiting) look(event)
    },
    removeRegions: () => Promise.resolve(),
    hasSegments: () => Promise.resolve(false),
    fence: () => Promise.resolve({ fenced: false, detail: '' }),
    openSegments: () => Promise.reject(new Error('there is no journal')),
    openRegions: (_group, _disk, size) => Promise.resolve(memoryRegions(size, 64 * KiB)),
    ...given,
  }
  const group = new ReplicaGroup(
    {
      ...{ group: 'vm', mode: 'colo', role, peer: 'peer', listens: true },
      ...{ memory: 64 * MiB, durability: 'memory', journal: 1 << 30, identical: true },
      ...{ heartbeatMs: 100_000, timeoutMs: 1_000_000, intervalMs: 0, onLinkLoss: 'continue' },
      ...{ wire: 'colotap', fence: null, partBytes: 64 * MiB, resyncRate: 0, ack: 'sent' },
      ...{ compareBytes: 256 * KiB, comparesFirst: false },
      ...settings,
    },
    environment,
    dial,
  )
  const image = new MemoryDevice(SIZE)
  content?.copy(image.bytes)
  const disk = group.attach('a', image)
  const next = (wanted: (event: GroupEvent) => boolean): Promise<GroupEvent> =>
    new Promise((resolve) => {
      const look = (event: GroupEvent): void => {
        if (!wanted(event)) return
        waiting.delete(look)
        resolve(event)
      }
      waiting.add(look)
    })
  await group.start()
  return { group, image, disk, events, next }
}
